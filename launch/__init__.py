"""Jobs on a cluster: where they run, how they are cut up, what they show."""
