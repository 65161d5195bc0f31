"""foresound beside other streaming recognisers: same machine, same weights, same audio, in turns."""
