"""Texts to ids: truncation, strange texts, padding."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from service.errors import GraphMismatch, InvalidInput
from service.runtime.encode import (
    MAX_CHARACTERS,
    Encoder,
    chunk_positions,
    kept_positions,
    longest_first,
    pad,
    window_starts,
)

CLS, SEP = 2, 3


@pytest.fixture
def encoder(bundle) -> Encoder:
    return Encoder(bundle.tokenizer_path, max_tokens=8, pad_id=0)


@pytest.fixture(scope="module")
def shared(tmp_path_factory, build_bundle) -> Encoder:
    path = build_bundle(tmp_path_factory.mktemp("shared") / "bundle")
    return Encoder(path / "tokenizer.json", max_tokens=8, pad_id=0)


def words(encoder: Encoder, text) -> list[int]:
    return encoder.encode([text])[0].input_ids.tolist()


class TestTruncation:
    def test_a_short_text_is_whole(self, encoder):
        (item,) = encoder.encode(["the film is good"])
        assert (item.tokens, item.kept, item.dropped, item.truncated) == (6, 6, 0, False)
        assert item.input_ids.dtype == np.int64
        assert item.token_type_ids.tolist() == [0] * 6

    def test_exactly_the_limit_is_whole(self, encoder):
        (item,) = encoder.encode(["the film is very very good"], truncate="error")
        assert (item.tokens, item.truncated) == (8, False)

    @pytest.mark.parametrize(("truncate", "kept"), [("end", slice(0, 6)), ("start", slice(-6, None))])
    def test_special_tokens_stay(self, encoder, bundle, truncate, kept):
        text = "the a is was it very not film card my"
        whole = Encoder(bundle.tokenizer_path, max_tokens=100, pad_id=0).encode([text])[0].input_ids.tolist()
        (item,) = encoder.encode([text], truncate=truncate)
        assert item.input_ids.tolist() == [CLS, *whole[1:-1][kept], SEP]
        assert (item.tokens, item.kept, item.dropped, item.truncated) == (12, 8, 4, True)

    def test_error_names_every_item_that_is_too_long(self, encoder):
        long = "good " * 7
        with pytest.raises(InvalidInput) as refused:
            encoder.encode(["fine", long, "fine", long], truncate="error")
        assert [problem.pointer for problem in refused.value.errors] == ["/inputs/1", "/inputs/3"]
        assert "9 tokens" in refused.value.errors[0].detail

    @pytest.mark.parametrize(("truncate", "word"), [("end", "good"), ("start", "bad")])
    def test_of_a_text_without_end_only_one_side_is_read(self, encoder, truncate, word):
        text = "good " * (MAX_CHARACTERS // 5) + "bad " * (MAX_CHARACTERS // 4 + 1)
        (item,) = encoder.encode([text], truncate=truncate)
        assert item.input_ids.tolist() == words(encoder, f"{word} " * 6)
        assert item.kept == 8
        assert 50_000 < item.dropped < 70_000
        assert len(encoder.encode([(text, text)], truncate=truncate)[0].input_ids) == 8

    def test_what_was_not_read_counts_as_cut(self, encoder):
        blank = "good" + " " * MAX_CHARACTERS
        (item,) = encoder.encode([blank])
        assert (item.tokens, item.kept, item.truncated) == (4, 3, True)
        with pytest.raises(InvalidInput) as refused:
            encoder.encode(["good", blank], truncate="error")
        assert [problem.pointer for problem in refused.value.errors] == ["/inputs/1"]

    def test_ten_thousand_tokens(self, encoder):
        (item,) = encoder.encode(["good " * 10_000])
        assert (item.tokens, item.kept) == (10_002, 8)

    @pytest.mark.parametrize("truncate", ["end", "start"])
    def test_of_a_pair_the_longer_text_is_cut(self, encoder, truncate):
        (item,) = encoder.encode([("good", "the film is was it very")], truncate=truncate)
        assert item.token_type_ids.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
        assert item.input_ids[[0, 2, 7]].tolist() == [CLS, SEP, SEP]
        assert item.tokens == 10

    def test_a_typed_special_token_does_not_confuse_it(self, encoder):
        (item,) = encoder.encode(["good [SEP] " * 10])
        assert item.kept == 8
        assert item.input_ids[[0, -1]].tolist() == [CLS, SEP]


class TestStrangeTexts:
    def test_the_empty_text_is_its_special_tokens(self, encoder):
        assert words(encoder, "") == [CLS, SEP]
        assert words(encoder, ("", "")) == [CLS, SEP, SEP]

    def test_where_nothing_is_added_it_is_the_padding_token(self, bundle):
        tokenizer = Tokenizer.from_file(str(bundle.tokenizer_path))
        tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
        bare = Encoder(tokenizer.to_str().encode(), max_tokens=8, pad_id=0)
        empty, word = bare.encode(["", "good"])
        assert (empty.input_ids.tolist(), empty.token_type_ids.tolist(), empty.tokens) == ([0], [0], 1)
        assert word.kept == 1

    def test_no_texts(self, encoder):
        assert encoder.encode([]) == []

    @pytest.mark.parametrize("text", ["\x00\x01\x1f", "🦓🏽‍🚀", "\u202e\ufeff", "a" * 1000, "中文 العربية", "\n\t"])
    def test_control_characters_emoji_and_scripts(self, encoder, text):
        assert 2 <= len(words(encoder, text)) <= 8

    @pytest.mark.parametrize("text", ["\ud800", "fine \udfff", ("fine", "\ud83d")])
    def test_lone_surrogates_are_refused_by_place(self, encoder, text):
        with pytest.raises(InvalidInput) as refused:
            encoder.encode(["fine", text])
        assert [problem.pointer for problem in refused.value.errors] == ["/inputs/1"]

    def test_a_programming_error_stays_one(self, encoder):
        with pytest.raises(TypeError):
            encoder.encode([3])

    @given(st.lists(st.text(max_size=40), min_size=1, max_size=5))
    def test_an_item_does_not_depend_on_its_company(self, shared, texts):
        together = [item.input_ids.tolist() for item in shared.encode(texts)]
        assert together == [words(shared, text) for text in texts]


class TestLoading:
    def test_padding_and_truncation_of_the_file_are_switched_off(self, encoder, bundle):
        tokenizer = Tokenizer.from_file(str(bundle.tokenizer_path))
        tokenizer.enable_padding(length=20)
        tokenizer.enable_truncation(3)
        same = Encoder(tokenizer.to_str().encode(), max_tokens=8, pad_id=0)
        assert words(same, "the film is good") == words(encoder, "the film is good")

    @pytest.mark.parametrize("raw", [b"", b"{}", b"\xff\xfe", b'{"model": null}'])
    def test_a_broken_file_is_refused_by_name(self, tmp_path, raw):
        (tmp_path / "tokenizer.json").write_bytes(raw)
        with pytest.raises(GraphMismatch, match=r"tokenizer\.json"):
            Encoder(tmp_path / "tokenizer.json", max_tokens=8, pad_id=0)

    def test_a_missing_file_is_refused_by_name(self, tmp_path):
        with pytest.raises(GraphMismatch, match=r"gone\.json"):
            Encoder(tmp_path / "gone.json", max_tokens=8, pad_id=0)

    def test_special_tokens_must_fit(self, bundle):
        with pytest.raises(GraphMismatch, match="special tokens"):
            Encoder(bundle.tokenizer_path, max_tokens=1, pad_id=0)


class TestPositions:
    @given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300))
    def test_longest_first_uses_the_budget_and_cuts_the_longer(self, first, second, budget):
        kept = longest_first(first, second, budget=budget)
        assert sum(kept) == min(budget, first + second)
        assert kept[0] <= first
        assert kept[1] <= second
        if kept[0] < first and kept[1] < second:
            assert abs(kept[0] - kept[1]) <= 1

    @given(st.integers(0, 20), st.integers(0, 20), st.integers(3, 20), st.booleans())
    def test_kept_positions_rise_and_hold_all_specials(self, first, second, max_tokens, cut_start):
        owners = [None, *[0] * first, None, *[1] * second, None]
        kept = kept_positions(owners, max_tokens=max_tokens, cut_start=cut_start).tolist()
        assert kept == sorted(set(kept))
        assert len(kept) == min(max_tokens, len(owners))
        assert {0, first + 1, first + second + 2} <= set(kept)


class TestPad:
    def test_rows_are_filled_on_the_right(self, encoder):
        feeds = pad(encoder.encode(["good", "the film", ("a", "is")]), pad_id=9)
        assert feeds["input_ids"][0].tolist()[3:] == [9, 9]
        assert feeds["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
        assert feeds["token_type_ids"][2].tolist() == [0, 0, 0, 1, 1]
        assert {array.dtype for array in feeds.values()} == {np.dtype(np.int64)}

    def test_to_a_given_length(self, encoder):
        assert pad(encoder.encode(["good"]), pad_id=0, length=12)["input_ids"].shape == (1, 12)


class TestChunks:
    text = "the a is was it very not film card my and but this where how"

    def test_a_text_that_fits_is_one_piece(self, encoder):
        (chunked,) = encoder.encode_chunks(["the film is good"])
        (whole,) = encoder.encode(["the film is good"])
        assert (len(chunked.pieces), chunked.tokens, chunked.kept) == (1, 6, 6)
        assert chunked.pieces[0].input_ids.tolist() == whole.input_ids.tolist()

    def test_a_long_text_is_covered_by_full_pieces_that_overlap(self, encoder, bundle):
        whole = Encoder(bundle.tokenizer_path, max_tokens=100, pad_id=0).encode([self.text])[0].input_ids.tolist()
        (chunked,) = encoder.encode_chunks([self.text])
        assert (chunked.tokens, chunked.kept) == (17, 17)
        inner = [piece.input_ids.tolist()[1:-1] for piece in chunked.pieces]
        assert all(piece.input_ids[[0, -1]].tolist() == [CLS, SEP] for piece in chunked.pieces)
        assert [len(piece) for piece in inner] == [6, 6, 6]
        assert inner == [whole[1:7], whole[6:12], whole[10:16]]

    def test_each_piece_of_a_pair_has_the_query(self, encoder):
        (chunked,) = encoder.encode_chunks([("good", self.text)])
        for piece in chunked.pieces:
            assert piece.kept == 8
            assert piece.token_type_ids.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
        assert chunked.kept == chunked.tokens == 19

    def test_a_long_query_keeps_half_of_the_room_unless_there_is_more(self, encoder):
        both, short = encoder.encode_chunks([(self.text, self.text), (self.text, "good")])
        assert {int((piece.token_type_ids == 0).sum()) for piece in both.pieces} == {2 + 2}
        assert (len(short.pieces), short.kept, short.tokens) == (1, 8, 19)
        assert int((short.pieces[0].token_type_ids == 0).sum()) == 2 + 4

    def test_of_a_pair_the_first_text_is_never_in_chunks(self, encoder):
        (chunked,) = encoder.encode_chunks([(self.text, "")])
        assert (len(chunked.pieces), chunked.kept, chunked.tokens) == (1, 8, 18)

    def test_what_is_not_read_of_a_very_long_text_counts_as_one_token(self, encoder):
        (chunked,) = encoder.encode_chunks(["good " * (MAX_CHARACTERS // 5 + 2)])
        assert chunked.tokens == chunked.kept + 1

    def test_a_lone_surrogate_is_refused(self, encoder):
        with pytest.raises(InvalidInput):
            encoder.encode_chunks(["good \ud800"])

    @given(st.integers(0, 60), st.integers(0, 60), st.integers(3, 20))
    def test_pieces_fit_hold_all_special_tokens_and_cover_the_last_text(self, first, second, most):
        owners = [None, *[0] * first, None, *[1] * second, *([None] if second else [])]
        pieces = chunk_positions(owners, max_tokens=most, pair=second > 0)
        last = 1 if second else 0
        special = [at for at, owner in enumerate(owners) if owner is None]
        assert all(len(piece) <= most for piece in pieces)
        if most > len(special) + 1:
            covered = set(np.concatenate(pieces).tolist())
            assert {at for at, owner in enumerate(owners) if owner == last} <= covered
            assert all(set(special) <= set(piece.tolist()) for piece in pieces)

    @given(st.integers(0, 300), st.integers(1, 40))
    def test_windows_overlap_and_reach_the_end(self, tokens, window):
        starts = window_starts(tokens, window=window)
        assert starts[0] == 0
        assert starts[-1] == max(tokens - window, 0)
        assert all(0 < after - before <= window for before, after in itertools.pairwise(starts))


class TestPieces:
    def test_tokens_tell_where_they_stand(self, encoder):
        first, *middle, last = encoder.pieces("is Good", special=True)
        assert (first.id, first.text, first.special, first.start, first.stop) == (CLS, "[CLS]", True, None, None)
        assert [(one.text, one.start, one.stop) for one in middle] == [("is", 0, 2), ("good", 3, 7)]
        assert last.id == SEP
        assert encoder.pieces("is Good", special=False) == middle

    def test_nothing_is_cut(self, encoder):
        assert len(encoder.pieces("good " * 100, special=True)) == 102

    def test_a_lone_surrogate_is_refused(self, encoder):
        with pytest.raises(InvalidInput, match="surrogate"):
            encoder.pieces("good \ud800", special=True)
