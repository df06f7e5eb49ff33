"""The generator's objective: weights x terms x phases (Perceptual MAE eq. 6)."""
