"""What a prior or a kernel implies: pictures, and predicted risks."""
