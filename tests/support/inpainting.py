"""Proposals over the real photos, and a pipeline of diffusers with small random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from hnpretrain.inpaint.folder import Folder
from hnpretrain.inpaint.records import Proposal, to_json
from tests.support.datasets import PHOTOS

# The width of CLIP's text states, which the U-Net looks at.
_WIDTH = 16


def write_proposals(root: Path, count: int = 3, edits: tuple[str, ...] = ("recolor",)) -> Folder:
    """Proposals p0, p1, ... of one photo each, with the polygons of its largest thing.

    Args:
        edits: of the proposals, in turn.
    """
    folder = Folder(root)
    lines = []
    for line in (PHOTOS / "data.jsonl").read_text().splitlines():
        if len(lines) == count:
            break
        record = json.loads(line)
        thing = _largest(record["instances"])
        if thing is None:
            continue
        number = len(lines)
        photo, mask = f"photos/{record['coco_id']}.jpg", f"masks/p{number}.png"
        for name in (photo, mask):
            folder.path(name).parent.mkdir(parents=True, exist_ok=True)
        folder.path(photo).write_bytes((PHOTOS / record["image"]).read_bytes())
        image = Image.new("L", (record["width"], record["height"]))
        for polygon in thing["polygons"]:
            ImageDraw.Draw(image).polygon(polygon, fill=255)
        image.save(folder.path(mask))
        noun = thing["category"]
        proposal = Proposal(
            id=f"p{number}",
            key=str(record["coco_id"]),
            photo=photo,
            source_caption=f"a {noun}",
            caption=f"a red {noun}",
            new_caption=f"a blue {noun}",
            concept="color",
            edit=edits[number % len(edits)],
            source="red",
            target="blue",
            span=(2, 5),
            noun=noun,
            category=noun,
            mask=mask,
            things=1,
            area=image.histogram()[255] / (image.width * image.height),
            score=1.0 / (1 + number),
        )
        lines.append(json.dumps(to_json(proposal)) + "\n")
    folder.proposals_file.write_text("".join(lines))
    return folder


def _largest(instances: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Of whole things that are no crowd."""
    things = [each for each in instances if each.get("polygons") and not each["iscrowd"]]
    return max(things, key=lambda each: each["bbox"][2] * each["bbox"][3], default=None)


def write_pipeline(
    folder: Path,
    kind: str = "StableDiffusionInpaintPipeline",
    channels: int = 9,
    checker: bool = False,
    seed: int = 0,
) -> Path:
    """A pipeline as `save_pretrained` leaves it: latents of half the side, two steps of U-Net.

    Args:
        kind: of Stable Diffusion's classes.
        channels: of the U-Net's input: 9 of one that was made for inpainting, 4 of others.
        checker: whether it has a safety checker.
    """
    import diffusers
    import torch
    import transformers

    torch.manual_seed(seed)
    letters = [chr(97 + n) + end for n in range(26) for end in ("", "</w>")]
    tokens = [*letters, "<|startoftext|>", "<|endoftext|>"]
    tokenizer = transformers.CLIPTokenizer(
        vocab={token: n for n, token in enumerate(tokens)}, merges=[], model_max_length=16
    )
    small = {"hidden_size": _WIDTH, "intermediate_size": 32, "num_hidden_layers": 1}
    end = tokenizer.eos_token_id
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            **small,
            num_attention_heads=2,
            vocab_size=len(tokens),
            max_position_embeddings=16,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=end,
            pad_token_id=end,
        )
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=32,
        in_channels=channels,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=_WIDTH,
        attention_head_dim=8,
        norm_num_groups=4,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )
    parts = {
        "scheduler": diffusers.DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        "safety_checker": _checker() if checker else None,
        "feature_extractor": transformers.CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
    }
    pipeline = getattr(diffusers, kind)(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        requires_safety_checker=checker,
        **parts,
    )
    pipeline.save_pretrained(folder)
    return folder


def _checker() -> Any:
    """One that takes every picture for unsafe: all similarities are above its thresholds."""
    import torch
    import transformers
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = transformers.CLIPConfig(
        projection_dim=8,
        vision_config={**vision, "num_attention_heads": 2, "image_size": 32, "patch_size": 16},
    )
    checker = StableDiffusionSafetyChecker(config)
    for thresholds in (checker.concept_embeds_weights, checker.special_care_embeds_weights):
        torch.nn.init.constant_(thresholds, -2.0)
    return checker
