"""What functions were called with, recovered from their code and the stack."""
