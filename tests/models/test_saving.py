from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_lightning.models import end_of_sequence_ids, save_model
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.mark.parametrize(("configured", "saved"), [(None, 1), (1, 1), (7, [1, 7]), ([7, 1, 9], [1, 7, 9])])
def test_the_saved_generation_config_names_the_tokenizers_eos_and_all_others(
    configured: object, saved: object, tmp_path: Path
) -> None:
    model = tiny_model()
    model.generation_config.eos_token_id = configured
    save_model(model, tiny_tokenizer(), tmp_path)
    settings = AutoModelForCausalLM.from_pretrained(tmp_path).generation_config
    assert settings.eos_token_id == saved
    assert settings.pad_token_id == 0
    assert end_of_sequence_ids(model, tiny_tokenizer()) == (saved if isinstance(saved, list) else [saved])


def test_plain_generate_stops_where_the_tokenizer_ends_though_the_models_config_names_another_token(
    tmp_path: Path,
) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    prompt = torch.tensor([[5, 6, 7]])
    first = int(model(prompt).logits[0, -1].argmax())
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(first)
    model.generation_config.eos_token_id = 2
    save_model(model, tokenizer, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).generate(prompt, max_new_tokens=8, do_sample=False)
    assert plain[0, 3:].tolist() == [first]
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token_id == first
