# pixelnet_expgb.py with augmentation by albumentations: small rotations and shears, crops, flips, colour.
#
#   python tools/browse.py configs/pixelnet_expgb_albu.py            # look at it first
#   python tools/train.py configs/pixelnet_expgb_albu.py --amp
#
# Labels are moved by nearest neighbour, and what a rotation uncovers gets label 255. SeededAlbu refuses settings that break
# either, and draws from the run's seed, which mmseg's Albu does not. Not the paper's augmentation, so not its numbers; not run
# in full yet. Copy train_pipeline and the line below it to use it elsewhere.
_base_ = ["pixelnet_expgb.py"]

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", imdecode_backend="pillow"),
    dict(
        type="SeededAlbu",
        transforms=[
            dict(type="Affine", rotate=(-15, 15), shear=(-5, 5), fill=(124, 117, 104), fill_mask=255, p=0.5),
            # 6: nearest neighbour by pixel centres, as the image is resized
            dict(type="RandomResizedCrop", size=(224, 224), scale=(0.4, 1.0), ratio=(0.75, 1.33), mask_interpolation=6),
            dict(type="HorizontalFlip", p=0.5),
            dict(type="ColorJitter", brightness=(0.8, 1.3), contrast=(0.8, 1.2), saturation=(0.8, 1.2), hue=(-0.05, 0.05)),
        ],
    ),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
