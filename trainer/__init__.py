"""Training: objectives, schedules, engines, the one loop and its two stages."""
