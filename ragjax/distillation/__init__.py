"""What the student learns from: losses and their sum."""
