"""Quality of answers: conditions that they must meet, and the evidence that they quote."""
