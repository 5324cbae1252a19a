# Fig. 5: the softmax's normaliser, from the gradients that the runs of fig1b.py record.
#
#   python tools/reproduce.py fig5 --budget reduced          # after fig1b it only draws
_base_ = ["fig1b.py"]

title = "Fig. 5: the softmax's normaliser"
claim = "s = sum exp(x) starts at 2,342 and increases monotonically from there."
verdict, figure = "normaliser", "normaliser"
