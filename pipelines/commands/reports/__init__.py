"""Commands that show what runs did."""
