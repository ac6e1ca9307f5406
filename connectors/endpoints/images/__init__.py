"""What image generation, edit and variation share."""
