"""Small models of open_clip: the miniature's CLIP with the same weights, and ones of random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPModel, PreTrainedTokenizerFast

MINI = Path(__file__).resolve().parents[1] / "resources/mini/clip"
CONVERTED: dict[str, Any] = {
    "embed_dim": 128,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 4, "width": 128, "head_width": 32, "patch_size": 4},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 3},
}
SIGLIP: dict[str, Any] = {  # as open_clip's SigLIP, with a smaller image tower of timm's
    "embed_dim": 64,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 48,
        "timm_model_name": "test_vit",
        "timm_model_pretrained": True,
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {
        "context_length": 32,
        "vocab_size": 40,
        "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "width": 64,
        "heads": 4,
        "layers": 2,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
    },
}
SIGLIP_PREPROCESSING = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}


def write_model(
    folder: Path, model_cfg: dict[str, Any], state: dict[str, torch.Tensor], **preprocess_cfg: Any
) -> Path:
    """Write a folder as open_clip's ``save_for_hf`` does, without a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(
        {name: value.contiguous() for name, value in state.items()}, folder / "open_clip_model.safetensors"
    )
    return folder


def _block(state: dict[str, torch.Tensor], theirs: str) -> dict[str, torch.Tensor]:
    """A layer of transformers' CLIP with open_clip's names."""
    found = {}
    for kind in ("weight", "bias"):
        parts = [state[f"{theirs}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
        found[f"attn.in_proj_{kind}"] = torch.cat(parts)
        names = {
            "attn.out_proj": "self_attn.out_proj",
            "ln_1": "layer_norm1",
            "ln_2": "layer_norm2",
            "mlp.c_fc": "mlp.fc1",
            "mlp.c_proj": "mlp.fc2",
        }
        found |= {f"{ours}.{kind}": state[f"{theirs}.{name}.{kind}"] for ours, name in names.items()}
    return found


def convert_miniature(folder: Path) -> Path:
    """Write the miniature's CLIP as a model of open_clip."""
    state = CLIPModel.from_pretrained(MINI, dtype=torch.float32, local_files_only=True).state_dict()
    vision, text = "vision_model", "text_model"
    found = {
        "logit_scale": state["logit_scale"],
        "visual.class_embedding": state[f"{vision}.embeddings.class_embedding"],
        "visual.positional_embedding": state[f"{vision}.embeddings.position_embedding.weight"],
        "visual.conv1.weight": state[f"{vision}.embeddings.patch_embedding.weight"],
        "visual.proj": state["visual_projection.weight"].T,
        "token_embedding.weight": state[f"{text}.embeddings.token_embedding.weight"],
        "positional_embedding": state[f"{text}.embeddings.position_embedding.weight"],
        "text_projection": state["text_projection.weight"].T,
    }
    for kind in ("weight", "bias"):
        found[f"visual.ln_pre.{kind}"] = state[f"{vision}.pre_layrnorm.{kind}"]
        found[f"visual.ln_post.{kind}"] = state[f"{vision}.post_layernorm.{kind}"]
        found[f"ln_final.{kind}"] = state[f"{text}.final_layer_norm.{kind}"]
    for tower, ours, layers in ((vision, "visual.transformer", 4), (text, "transformer", 3)):
        for layer in range(layers):
            block = _block(state, f"{tower}.encoder.layers.{layer}")
            found |= {f"{ours}.resblocks.{layer}.{name}": value for name, value in block.items()}
    return write_model(folder, CONVERTED, found)


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of letters in the layout of SigLIP's: no first token, a last one, padding of ones."""
    letters = [("<unk>", 0.0), ("</s>", 0.0), *((letter, -1.0) for letter in " abcdefghijklmnopqrstuvwxyz")]
    own = Tokenizer(models.Unigram(letters, unk_id=0))
    own.normalizer, own.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Whitespace()
    own.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=own, unk_token="<unk>", eos_token="</s>", pad_token="</s>"
    )
    wrapped.save_pretrained(folder)


def write_siglip(folder: Path) -> Path:
    """Write a SigLIP of random weights."""
    import open_clip

    torch.manual_seed(0)
    config = {**SIGLIP, "vision_cfg": {**SIGLIP["vision_cfg"], "timm_model_pretrained": False}}
    state = open_clip.CustomTextCLIP(
        **{name: value for name, value in config.items() if name != "custom_text"}
    ).state_dict()
    write_model(folder, SIGLIP, state, **SIGLIP_PREPROCESSING)
    write_tokenizer(folder)
    return folder
