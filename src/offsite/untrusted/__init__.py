"""What a stranger sent, read within bounds."""
