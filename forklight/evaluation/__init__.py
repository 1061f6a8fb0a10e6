"""The output of an evaluation: records of answers and scores, and rewarded answers that look suspicious."""
