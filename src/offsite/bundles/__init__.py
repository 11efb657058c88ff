"""What crosses between the two parties."""
