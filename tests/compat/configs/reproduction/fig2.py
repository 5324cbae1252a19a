# Fig. 2: distributions of the output deltas, from the gradients that the runs of fig1b.py record.
#
#   python tools/reproduce.py fig2 --budget reduced          # after fig1b it only draws
_base_ = ["fig1b.py"]

title = "Fig. 2: distributions of the output deltas"
claim = "exp-GB's deltas lie in about [-6, 10], far beyond the softmax's [-1, 1]."
verdict, figure = "deltas", "histograms"
