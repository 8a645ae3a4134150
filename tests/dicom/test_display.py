"""What the header says of a frame's window and rescale."""

import numpy as np
from pydicom.dataset import Dataset

from damcli.dicom.pixels import grey16, remark


def test_a_frame_of_an_enhanced_object_has_its_own_window_and_rescale(dicom):
    """PS3.3 C.7.6.16.2.9 and C.7.6.16.2.10: what all frames share, and what one has for itself."""

    def macro(keyword, **values):
        inner, group = Dataset(), Dataset()
        for name, value in values.items():
            setattr(inner, name, value)
        setattr(group, keyword, [inner])
        return group

    frames = np.array([[[0, 100]], [[0, 100]]], np.uint16)
    image = dicom(
        frames[0],
        NumberOfFrames=2,
        PixelData=frames.tobytes(),
        SharedFunctionalGroupsSequence=[
            macro("PixelValueTransformationSequence", RescaleSlope=2, RescaleIntercept=10, RescaleType="US")
        ],
        PerFrameFunctionalGroupsSequence=[
            macro("FrameVOILUTSequence", WindowCenter=110, WindowWidth=200, VOILUTFunction="LINEAR_EXACT"),
            macro("FrameVOILUTSequence", WindowCenter=210, WindowWidth=400, VOILUTFunction="LINEAR_EXACT"),
        ],
    )
    # 10 and 210 within 10 … 210, and within 10 … 410.
    assert grey16(image, 0).tolist() == [[0, 65535]]
    assert grey16(image, 1).tolist() == [[0, 32768]]


def test_a_blank_first_window_is_none(dicom):
    image = dicom(np.array([[0, 4095]], np.uint16), WindowCenter=["", "2000"], WindowWidth=["", "4000"])
    assert grey16(image).tolist() == [[0, 65535]]


def test_pixels_that_are_not_square_are_remarked(dicom):
    image = np.zeros((4, 4), np.uint16)
    assert remark(dicom(image)) == ""
    assert remark(dicom(image, PixelSpacing=[0.143, 0.143])) == ""
    assert "not square" in remark(dicom(image, PixelAspectRatio=["2", "1"]))
    assert "not square" in remark(dicom(image, ImagerPixelSpacing=["0.1", "0.2"]))
