"""What the bridge shows of itself: health, metrics."""
