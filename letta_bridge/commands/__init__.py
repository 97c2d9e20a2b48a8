"""What people can ask the bridge itself."""
