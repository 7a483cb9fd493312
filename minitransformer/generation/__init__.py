"""Text generation: tokens are sampled one by one and decoded as a stream."""
