"""How far is each form of the mLSTM from float64? README.md has the method."""
