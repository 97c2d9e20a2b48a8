"""What the tests and the demo need beside the bridge: fakes, a person, and real servers started locally."""
