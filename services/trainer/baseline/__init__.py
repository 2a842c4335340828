"""What a scenario's trajectories have been worth so far: the measure for groups of one."""
