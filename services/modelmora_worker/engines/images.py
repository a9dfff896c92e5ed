"""Image classification by transformers on torch, fp32: image files in, scores of labels out.

A file is sized by its head before anything of it is decoded (image_files.py), and so is what the model's own image
processor would make of it (image_sizes.py), which then brings it to what the model sees, on the thread that tokenises
texts for other engines. Images of one shape are computed together, as many as take no more room than a full batch of
usual ones. What goes in counts one token for each 16 × 16 pixels that the model sees, whatever the file weighs.

Only local files, only safetensors, no code from the model's folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from modelmora import errors

from modelmora_worker.engines import base, image_files, image_sizes
from modelmora_worker.engines.sentence_transformers import MOST_TRACKS, check_folder, usable_cores
from modelmora_worker.engines.transformers import check_spec, check_weights

NAME: Final = "transformers_images"
PIXELS_PER_TOKEN: Final = 256
_LIBRARIES = ("torch", "transformers", "pillow")


class ImagesEngine:
    """See the table row for its options."""

    batching = base.Batching.STATIC

    def __init__(self) -> None:
        self._torch: Any = None
        self._model: Any = None
        self._processor: Any = None
        self._scale: Callable[[Any], Any] = lambda scores: scores
        """From what the model gives to probabilities."""
        self._options: Mapping[str, Any] = {}
        self._resizing: image_sizes.Resizing | None = None
        self._max_resized_pixels = 0
        self._usual_shape: tuple[int, ...] = ()
        """Of what the model sees of most images."""
        self._threads = self.tracks = 1

    def load(self, spec: base.EngineSpec, progress: Callable[[str, int, int], None]) -> base.Footprint:
        row = base.TABLE[NAME]
        self._options = options = base.read_options(row, spec.options)
        base.task_of(row, spec)
        check_spec(spec)
        folder = Path(spec.artifact_path)
        weights_bytes = check_folder(folder)
        progress("libraries", 0, weights_bytes)
        base.set_environment(row)
        try:
            image_files.set_up()
        except ImportError as error:
            raise base.engine_unavailable(row, error) from error
        import torch
        import transformers
        from safetensors import SafetensorError

        transformers.utils.logging.disable_progress_bar()
        self._torch = torch
        self._threads = spec.cpu_threads or usable_cores()
        self.tracks = min(self._threads, MOST_TRACKS)
        torch.set_num_threads(self._threads)
        progress("weights", 0, weights_bytes)
        local = {"local_files_only": True, "trust_remote_code": False}
        try:
            config = transformers.AutoConfig.from_pretrained(str(folder), **local)
            self._processor = transformers.AutoImageProcessor.from_pretrained(str(folder), backend="pil", **local)
            self._model, told = transformers.AutoModelForImageClassification.from_pretrained(
                str(folder),
                config=config,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                **local,
            )
            check_weights(told)
            self._model.float().eval()
            self._scale = _scale_of(config)
            tokens = self._warm_up()
            self._resizing = _resizing_of(self._processor)
            self._max_resized_pixels = options["max_resized_pixels"] or image_sizes.most_resized(self._resizing)
        except (
            OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError, SafetensorError
        ) as error:  # fmt: skip
            if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
                raise MemoryError(str(error)) from error
            raise errors.InvalidModelFiles(f"{type(error).__name__}: {error}") from error
        except errors.InvalidArgument as error:
            raise errors.InvalidModelFiles(error.message) from error
        progress("ready", weights_bytes, weights_bytes)
        # To decode a photo takes longer than to send it, and what is on the worker is not overtaken meanwhile.
        entries = options["max_batch_entries"] or options["micro_batch_entries"]
        return base.Footprint(
            memory_bytes={},
            profile=base.Profile("torch", "fp32", {name: version(name) for name in _LIBRARIES}, "by shape"),
            max_input_tokens=tokens,
            embedding_dimensions=0,
            max_batch_tokens=max(options["max_batch_tokens"] or entries * tokens, tokens),
            max_batch_entries=entries,
            labels=[str(config.id2label[n]) for n in range(config.num_labels)],
            max_image_bytes=options["max_image_bytes"],
            max_image_pixels=options["max_image_pixels"],
            max_resized_pixels=self._max_resized_pixels,
        )

    def prepare(self, texts: Sequence[base.Text], exact: bool = False) -> base.Prepared:
        return self.prepare_each(texts, exact, lambda position: True)

    def prepare_each(self, texts: Sequence[base.Text], exact: bool, wanted: Callable[[int], bool]) -> base.Prepared:
        prepared = base.Prepared()
        rows: list[tuple[int, Any, base.Text]] = []
        for position, entry in enumerate(texts):
            if not wanted(position):
                continue
            try:
                rows.append((position, self._seen(entry.data), entry))
            except errors.InvalidArgument as error:
                prepared.failed.append((position, error))
        rows.sort(key=lambda row: tuple(row[1].shape))
        batch = base.MicroBatch([], [], [], [], exact)
        most_tokens = self._options["micro_batch_entries"] * _tokens(self._usual_shape)
        most_entries = min(self._options["micro_batch_entries"], -(-len(rows) // self.tracks))
        for position, pixels, entry in rows:
            tokens = _tokens(pixels.shape)
            if (
                not batch.positions
                or len(batch.positions) == most_entries
                or (len(batch.positions) + 1) * tokens > most_tokens
                or batch.items[0][0].shape != pixels.shape
            ):
                batch = base.MicroBatch([], [], [], [], exact)
                prepared.micro_batches.append(batch)
            batch.positions.append(position)
            batch.input_tokens.append(tokens)
            batch.truncated.append(False)
            batch.items.append((pixels, entry))
        return prepared

    def open_tracks(self) -> None:
        """There is nothing to make ready: torch has its weights once."""

    def infer(self, batch: base.MicroBatch, track: int | None = None) -> base.Rows:
        torch = self._torch
        if self.tracks > 1:
            torch.set_num_threads(self._threads if track is None else self._threads // self.tracks)
        with torch.inference_mode():
            images = torch.stack([pixels for pixels, _ in batch.items])
            try:
                scores = self._model(pixel_values=images).logits.float()
            except (ValueError, RuntimeError) as error:
                if tuple(images.shape[1:]) == self._usual_shape or "allocate memory" in str(error):
                    raise
                wrong = errors.InvalidArgument(
                    f"the model cannot take an image of {images.shape[3]} × {images.shape[2]} pixels: {error}"[:500]
                )
                return base.Rows(b"", [0] * len(batch.items), [(position, wrong) for position in batch.positions])
            raw = torch.tensor([entry.raw_scores for _, entry in batch.items]).unsqueeze(1)
            scores = torch.where(raw, scores, self._scale(scores))
        data = scores.contiguous().numpy().astype("<f4", copy=False).tobytes()
        return base.Rows(data, [scores.shape[1]] * len(batch.items))

    def tokens(self, texts: Sequence[base.Text]) -> Sequence[bytes]:
        raise errors.TaskNotSupported("a model of images has no tokens")

    def stream(self, request: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        raise errors.TaskNotSupported("engine transformers_images does not generate")

    def close(self) -> None:
        self._model = self._processor = None

    # Helpers.

    def _seen(self, data: bytes) -> Any:
        """What the model sees of an image file: float32 [channels, height, width]. Raises InvalidArgument."""
        if not data:
            raise errors.InvalidArgument("there is no image; this model takes image files")
        options = self._options
        return self._processed(
            image_files.decoded(data, options["max_image_bytes"], options["max_image_pixels"], self._check_resized)
        )

    def _check_resized(self, width: int, height: int) -> None:
        most, between = self._max_resized_pixels, self._options["max_image_pixels"]
        if why := image_sizes.too_large(self._resizing, width, height, most, between):
            raise errors.InvalidArgument(why)

    def _processed(self, image: Any) -> Any:
        try:
            return self._processor(images=image, return_tensors="pt")["pixel_values"][0].to(self._torch.float32)
        except (ValueError, ZeroDivisionError) as error:  # far too narrow, for one
            raise errors.InvalidArgument(
                f"the model's processor cannot take an image of {image.width} × {image.height} pixels: {error}"
            ) from error

    def _warm_up(self) -> int:
        """One pass, so that the first request does not pay for what is set up lazily; the tokens of a usual image."""
        pixels = self._processed(image_files.blank(*image_sizes.USUAL))
        with self._torch.inference_mode():
            self._model(pixel_values=pixels.unsqueeze(0))
        self._usual_shape = tuple(pixels.shape)
        return _tokens(self._usual_shape)


def _tokens(shape: Sequence[int]) -> int:
    return max(1, shape[-1] * shape[-2] // PIXELS_PER_TOKEN)


def _resizing_of(processor: Any) -> image_sizes.Resizing | None:
    names = ("do_resize", "crop_pct", "size_divisor")
    settings = {name: getattr(processor, name, None) for name in names}
    size = dict(getattr(processor, "size", None) or {})
    return image_sizes.resizing_of(type(processor).__name__, {**settings, "size": size})


def _scale_of(config: Any) -> Callable[[Any], Any]:
    """As the pipeline of transformers decides it."""
    if config.problem_type == "regression":
        return lambda scores: scores
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return lambda scores: scores.sigmoid()
    return lambda scores: scores.softmax(dim=-1)
