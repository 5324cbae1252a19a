# Fig. 3: RMS of the error gradients by layer, from the gradients that the runs of fig1b.py record.
#
#   python tools/reproduce.py fig3 --budget reduced          # after fig1b it only draws
_base_ = ["fig1b.py"]

title = "Fig. 3: RMS of the error gradients by layer"
claim = "in the hidden layers exp-GB's gradients are an order of magnitude larger than the softmax's, pow3-GB's more than two."
verdict, figure = "hidden_gradients", "rms"
