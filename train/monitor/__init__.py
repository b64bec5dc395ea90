"""What a run tells while it works: log, bar, alarms, trackers, power."""
