"""What the TOSA backends of qcore share: annotation, lowering and reference execution."""
