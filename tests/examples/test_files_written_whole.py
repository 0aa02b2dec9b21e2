"""Files are written whole or not at all."""

import pytest

from parts.files import written_whole


def test_an_interrupted_file_is_not_written(tmp_path):
    def write_half():
        with written_whole(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert list(tmp_path.iterdir()) == []
