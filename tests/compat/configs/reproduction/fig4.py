# Fig. 4 and the second column of Table 2: top-5 error by epoch, from the runs of table2.py. Not run: see there.
#
#   python tools/reproduce.py fig4
_base_ = ["table2.py"]

title = "Fig. 4: AlexNet with batch normalisation on ImageNet, top-5"
claim = "exp-GB reaches 29.81% top-5 error in ten epochs where the softmax reaches 33.55%."
paper = dict(softmax="33.55%", expgb="29.81%")
metric = "accuracy/top5"
