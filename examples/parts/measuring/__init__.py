"""Quality measures, what they are compared with, and trainings that are compared."""
