"""What the operations on triplane structures share: checks, packed decoders, device functions."""
