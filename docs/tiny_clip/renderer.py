"""Procedural infrared / visible scenes and the fused image one would wish for.

A scene is painted back to front, twice at once: every object carries an *albedo* (what a
visible camera sees once there is light) and a *heat* (what a thermal camera sees). The two
maps then go through two different cameras: light, shadows, night lamps and haze on the visible
side; heat diffusion, automatic local gain and row noise on the infrared side.

All scenes are drawn here from random numbers; no photograph takes part. The same seed and size
give the same scene.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

Array = NDArray[np.float32]
Points = list[tuple[float, float]]  # (x, y), the image spans [0, 1] x [0, 1]
Lines = list[tuple[Points, float]]  # poly-lines, each with its width

_SUPERSAMPLE = 2  # shapes are drawn this much larger, so that their edges are anti-aliased
_TEXT = "ABCDEFGHKLMNPRSTUVXYZ0123456789"


@dataclass(frozen=True)
class Scene:
    """One rendered scene.

    Attributes:
        visible: grey image (size, size), float32 in [0, 1].
        infrared: grey image (size, size), float32 in [0, 1], hot is bright.
        fused: the fused image to wish for, same shape and range.
        night: the visible image was taken at night.
        hazy: haze lies over the visible image.
        has_targets: people or vehicles stand in the scene.
    """

    visible: Array
    infrared: Array
    fused: Array
    night: bool
    hazy: bool
    has_targets: bool


def render_scene(seed: int, size: int = 224) -> Scene:
    """Render one scene, `size` pixels square; equal seeds give equal scenes."""
    rng = np.random.default_rng(seed)
    painter = _Painter(rng, size)
    _KINDS[rng.choice(len(_KINDS), p=_KIND_WEIGHTS)](painter)
    night = bool(rng.random() < 0.35)
    hazy = bool(not night and rng.random() < 0.12)
    clear = _visible_camera(painter, night)
    infrared = _infrared_camera(painter)
    fused = fuse_by_hand(clear, infrared, rng, targets=painter.targets)
    visible = _add_haze(clear, painter) if hazy else clear
    has_targets = bool(painter.targets.mean() > 0.004)
    return Scene(visible, infrared, fused, night, hazy, has_targets)


def render_pairs(count: int, *, size: int = 224, seed: int = 0) -> tuple[Tensor, Tensor]:
    """`(visible, infrared)`, each (count, 1, size, size), float32 in [0, 1]."""
    scenes = [render_scene(scene_seed(seed, index), size) for index in range(count)]
    stacks = np.stack([[s.visible for s in scenes], [s.infrared for s in scenes]])[:, :, None]
    visible, infrared = torch.from_numpy(stacks)
    return visible, infrared


def scene_seed(seed: int, index: int) -> int:
    """Seed of scene `index` in the series `seed`; series do not overlap below a million scenes."""
    return seed * 1_000_000 + index


def fuse_by_hand(
    visible: Array, infrared: Array, rng: np.random.Generator, targets: Array | None = None
) -> Array:
    """The fused image a person would ask for: visible texture, hot targets, good exposure.

    The base mixes both sources, detail is the larger-magnitude *signed* detail of the two (so
    that no edge is inverted), somewhat amplified, hot targets come from the infrared image. All
    images are (H, W) in [0, 1]. `rng` draws the taste: how much of the base is infrared, how
    strong the detail is. `targets` is where hot targets are; None takes what is hotter than its
    surroundings.
    """
    exposed = _auto_expose(visible)
    sigma = visible.shape[0] / rng.uniform(24, 48)
    base_visible, base_infrared = _blur(exposed, sigma), _blur(infrared, sigma)
    mix = rng.uniform(0.25, 0.5)
    base = (1 - mix) * base_visible + mix * np.maximum(base_visible, base_infrared)
    detail_visible, detail_infrared = exposed - base_visible, infrared - base_infrared
    # A soft choice, else noise in flat areas flickers between the two sources.
    choice = _sigmoid(30 * (np.abs(detail_visible) - 0.8 * np.abs(detail_infrared)))
    detail = choice * detail_visible + (1 - choice) * detail_infrared
    fused = base + rng.uniform(1.1, 1.5) * detail
    if targets is None:
        local = _blur(infrared, visible.shape[0] / 8)
        targets = _sigmoid(25 * (infrared - local - 0.2)) * _sigmoid(25 * (infrared - 0.6))
    hot = targets * rng.uniform(0.6, 0.9)
    fused = fused * (1 - hot) + hot * np.maximum(fused, infrared)
    fine = fused - _blur(fused, visible.shape[0] * rng.uniform(0.006, 0.014))
    fused = _auto_expose(fused + rng.uniform(0.2, 0.7) * fine, spread=rng.uniform(0.15, 0.2))
    return np.clip(fused, 0, 1)


class _Painter:
    """Albedo, heat, target and lamp maps of one scene, painted back to front."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.rng = rng
        self.size = size
        self.albedo = np.full((size, size), 0.5, np.float32)
        self.heat = np.full((size, size), 0.4, np.float32)
        self.targets = np.zeros((size, size), np.float32)
        self.shade = np.zeros((size, size), np.float32)  # where the sun does not reach
        self.sky = np.zeros((size, size), np.float32)
        self.lamps: list[tuple[float, float, float]] = []  # x, y, radius
        self.horizon = 0.0
        # In most scenes the paint and the heat of a surface have nothing to do with each other,
        # and either may be the finer or the stronger: grain must not tell the modalities apart.
        self.shared_texture = rng.random() < 0.35
        self.paint_strength, self.heat_strength = rng.uniform(0.25, 1.1), rng.uniform(0.5, 2.0)
        self.heat_slope = rng.uniform(-0.4, 0.5)

    def noise(self, slope: float) -> Array:
        """Random texture with a 1/f^slope spectrum, zero mean, unit deviation."""
        frequencies = np.hypot(np.fft.fftfreq(self.size)[:, None], np.fft.rfftfreq(self.size)[None])
        frequencies[0, 0] = 1
        shape = frequencies.shape
        spectrum = self.rng.standard_normal(shape) + 1j * self.rng.standard_normal(shape)
        spectrum[0, 0] = 0
        texture = np.fft.irfft2(spectrum / frequencies**slope, s=(self.size, self.size))
        return (texture / texture.std()).astype(np.float32)

    def texture(self, slope: float, contrast: float, heat_contrast: float) -> tuple[Array, Array]:
        """An albedo texture and the heat texture that goes with it."""
        paint = self.noise(slope)
        heat = paint if self.shared_texture else self.noise(slope + self.heat_slope)
        return self.paint_strength * contrast * paint, self.heat_strength * heat_contrast * heat

    def polygons(self, *polygons: Points) -> Array:
        """Mask of filled polygons."""
        image, draw, scale = self._sheet()
        for polygon in polygons:
            draw.polygon([(x * scale, y * scale) for x, y in polygon], fill=255)
        return self._mask(image)

    def ellipses(self, *boxes: tuple[float, float, float, float]) -> Array:
        """Mask of filled ellipses given as (x, y, radius_x, radius_y)."""
        image, draw, scale = self._sheet()
        for x, y, rx, ry in boxes:
            box = [(x - rx) * scale, (y - ry) * scale, (x + rx) * scale, (y + ry) * scale]
            draw.ellipse(box, fill=255)
        return self._mask(image)

    def lines(self, segments: Lines) -> Array:
        """Mask of poly-lines, each with its width."""
        image, draw, scale = self._sheet()
        for points, width in segments:
            pixels = max(1, round(width * scale))
            draw.line([(x * scale, y * scale) for x, y in points], fill=255, width=pixels)
        return self._mask(image)

    def letters(self, text: str, x: float, y: float, height: float) -> Array:
        """Mask of a written word."""
        image, draw, scale = self._sheet()
        draw.text((x * scale, y * scale), text, fill=255, font_size=max(4.0, height * scale))
        return self._mask(image)

    def paint(self, mask: Array, albedo: Array | float, heat: Array | float) -> None:
        """Cover what lies under `mask`; whatever was a target, sky or shade there is hidden."""
        self.albedo += mask * (albedo - self.albedo)
        self.heat += mask * (heat - self.heat)
        for hidden in (self.targets, self.shade, self.sky):
            hidden *= 1 - mask

    def _sheet(self) -> tuple[Image.Image, ImageDraw.ImageDraw, float]:
        side = self.size * _SUPERSAMPLE
        image = Image.new("L", (side, side))
        return image, ImageDraw.Draw(image), float(side)

    def _mask(self, image: Image.Image) -> Array:
        return np.asarray(image.reduce(_SUPERSAMPLE), np.float32) / 255


def _box(x: float, y: float, width: float, height: float) -> Points:
    """Corners of an upright rectangle whose top left corner is (x, y)."""
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


def _paint_sky(p: _Painter, horizon: float) -> None:
    """Bright in the visible, the coldest thing there is in the infrared."""
    p.horizon = horizon
    height = np.linspace(0, 1, p.size, dtype=np.float32)[:, None] / max(horizon, 0.05)
    clouds = np.clip(p.noise(1.6), 0, 2) * (p.rng.random() < 0.6)
    mask = p.polygons(_box(0, 0, 1, horizon))
    albedo = p.rng.uniform(0.65, 1.0) + p.rng.uniform(-0.1, 0.15) * height
    albedo = albedo + p.rng.uniform(-0.15, 0.15) * clouds
    rows = np.repeat(p.rng.standard_normal((p.size, 1)), p.size, 1).astype(np.float32)
    heat = p.rng.uniform(0.0, 0.12) + p.rng.uniform(0, 0.12) * height
    heat = heat + p.rng.uniform(0, 0.1) * clouds + p.rng.uniform(0, 0.015) * rows
    p.paint(mask, albedo, heat)
    p.sky += mask


def _paint_ground(p: _Painter, horizon: float) -> None:
    """Soil or grass from the horizon down; heat loosely follows it."""
    paint, heat = p.texture(p.rng.uniform(0.6, 1.3), p.rng.uniform(0.05, 0.14), 0.04)
    paint = paint + 0.05 * p.noise(1.8)
    mask = p.polygons(_box(0, horizon, 1, 1 - horizon + 0.01))
    p.paint(mask, p.rng.uniform(0.25, 0.6) + paint, p.rng.uniform(0.25, 0.45) + heat)


def _paint_hills(p: _Painter) -> None:
    """A far ridge on the horizon, pale in the visible, cool in the infrared."""
    xs = np.linspace(-0.02, 1.02, 24)
    ridge = p.horizon - 0.05 - 0.06 * np.abs(np.cumsum(p.rng.standard_normal(24)) * 0.4)
    points: Points = [(-0.02, p.horizon + 0.01), *zip(xs, ridge, strict=True)]
    points.append((1.02, p.horizon + 0.01))
    paint, heat = p.texture(1.2, 0.05, 0.03)
    p.paint(p.polygons(points), p.rng.uniform(0.35, 0.6) + paint, p.rng.uniform(0.2, 0.4) + heat)


def _paint_foliage(p: _Painter, x: float, y: float, width: float, height: float) -> None:
    """A leafy crown: dark and finely textured in the visible, warm against the sky."""
    blobs = []
    for _ in range(9):
        centre = x + width * p.rng.uniform(-0.4, 0.4), y + height * p.rng.uniform(-0.4, 0.4)
        radii = width * p.rng.uniform(0.15, 0.35), height * p.rng.uniform(0.15, 0.35)
        blobs.append((*centre, *radii))
    crown = _blur(p.ellipses(*blobs), p.size * 0.012)
    mask = np.clip(12 * (crown - 0.5 + 0.18 * p.noise(0.9)), 0, 1)
    paint, heat = p.texture(p.rng.uniform(0.4, 0.9), p.rng.uniform(0.07, 0.14), 0.05)
    p.paint(mask, p.rng.uniform(0.15, 0.4) + paint, p.rng.uniform(0.4, 0.62) + heat)
    p.shade += mask * np.clip(0.35 * p.noise(1.0), 0, 0.6)


def _paint_bare_tree(p: _Painter, x: float, foot: float, height: float) -> None:
    """Trunk and branches: dark lines in the visible, warm ones in the infrared."""
    segments: Lines = []

    def grow(x0: float, y0: float, angle: float, length: float, width: float) -> None:
        x1, y1 = x0 + length * np.sin(angle), y0 - length * np.cos(angle)
        segments.append(([(x0, y0), (x1, y1)], width))
        if length > height * 0.12:
            for turn in p.rng.uniform(0.2, 0.7, 2) * (-1, 1):
                grow(x1, y1, angle + turn, length * p.rng.uniform(0.6, 0.78), width * 0.65)

    grow(x, foot, p.rng.uniform(-0.1, 0.1), height * 0.35, height * 0.035)
    p.paint(p.lines(segments), p.rng.uniform(0.08, 0.3), p.rng.uniform(0.45, 0.65))


def _paint_poles(p: _Painter, count: int) -> None:
    """Poles, some carrying a lamp, and the wires between them."""
    feet = np.sort(p.rng.uniform(0.03, 0.97, count))
    tops = p.rng.uniform(0.03, 0.35, count)
    bottoms = np.clip(p.horizon + p.rng.uniform(0.03, 0.3, count), 0.3, 1)
    width = p.rng.uniform(0.006, 0.022)
    posts: Lines = [
        ([(x, top), (x, bottom)], width) for x, top, bottom in zip(feet, tops, bottoms, strict=True)
    ]
    p.paint(p.lines(posts), p.rng.uniform(0.2, 0.75), p.rng.uniform(0.5, 0.75))
    if count > 1 and p.rng.random() < 0.6:
        wires: Lines = [
            ([(feet[i], tops[i] + d), (feet[i + 1], tops[i + 1] + d)], 0.004)
            for i in range(count - 1)
            for d in (0.0, 0.03)
        ]
        p.paint(p.lines(wires), 0.2, p.rng.uniform(0.3, 0.5))
    for x, top in zip(feet, tops, strict=True):
        if p.rng.random() < 0.6:
            p.lamps.append((float(x), float(top), p.rng.uniform(0.006, 0.02)))


def _paint_building(p: _Painter, x: float, y: float, width: float, height: float) -> None:
    """A wall with rows of windows; panes mirror the cold sky and are colder than the wall."""
    paint, heat = p.texture(p.rng.uniform(0.5, 1.2), p.rng.uniform(0.02, 0.08), 0.03)
    wall_heat = p.rng.uniform(0.42, 0.72)
    p.paint(
        p.polygons(_box(x, y, width, height)), p.rng.uniform(0.3, 0.9) + paint, wall_heat + heat
    )
    if p.rng.random() < 0.4:  # bricks: seen by paint alone
        step = p.rng.uniform(0.012, 0.03)
        rows = np.arange(y, min(y + height, 1.0), step)
        joints: Lines = [([(x, r), (x + width, r)], 0.003) for r in rows]
        p.albedo -= p.rng.uniform(0.04, 0.12) * p.lines(joints)
    columns, rows_count = int(p.rng.integers(2, 7)), int(p.rng.integers(2, 6))
    cell_x, cell_y = width / columns, height / rows_count
    panes = [
        _box(x + (i + 0.25) * cell_x, y + (j + 0.25) * cell_y, 0.5 * cell_x, 0.5 * cell_y)
        for i in range(columns)
        for j in range(rows_count)
        if p.rng.random() < 0.9
    ]
    if panes:
        p.paint(p.polygons(*panes), p.rng.uniform(0.05, 0.35), wall_heat - p.rng.uniform(0.1, 0.35))
        frames: Lines = [([*pane, pane[0]], 0.005) for pane in panes]
        p.paint(p.lines(frames), p.rng.uniform(0.5, 0.95), wall_heat)
        lit = panes[int(p.rng.integers(len(panes)))]
        p.lamps.append((lit[0][0] + cell_x / 4, lit[0][1] + cell_y / 4, 0.01))
    ridge = (x + width / 2, y - p.rng.uniform(0, 0.08))
    roof = [(x - 0.01, y + 0.01), ridge, (x + width, y + 0.01)]
    p.paint(p.polygons(roof), p.rng.uniform(0.15, 0.5), p.rng.uniform(0.3, 0.65))


def _paint_road(p: _Painter) -> None:
    """Asphalt narrowing to the horizon; lane marks are paint and nearly gone in the infrared."""
    centre, top = p.rng.uniform(0.3, 0.7), p.horizon + 0.005
    left, right = centre - p.rng.uniform(0.35, 0.8), centre + p.rng.uniform(0.35, 0.8)
    heat_level = p.rng.uniform(0.35, 0.58)
    paint, heat = p.texture(0.5, p.rng.uniform(0.015, 0.05), 0.02)
    road = p.polygons([(centre - 0.03, top), (centre + 0.03, top), (right, 1.01), (left, 1.01)])
    p.paint(road, p.rng.uniform(0.3, 0.5) + paint, heat_level + heat + 0.04 * p.noise(1.5))
    marks = []
    for side in (p.rng.uniform(0.1, 0.3), 0.5, p.rng.uniform(0.7, 0.9)):
        dashed = p.rng.random() < 0.6
        foot = left + side * (right - left)
        for start in np.linspace(0.02, 0.9, 8):
            end = start + (0.06 if dashed else 0.13)
            quad = []
            for t, sign in ((start, -1), (start, 1), (end, 1), (end, -1)):
                depth = t**1.6  # perspective: marks grow towards the camera
                wide = 0.012 * depth + 0.001
                quad.append(
                    (centre + (foot - centre) * depth + sign * wide, top + (1 - top) * depth)
                )
            marks.append(quad)
    p.paint(p.polygons(*marks) * road, p.rng.uniform(0.75, 0.98), heat_level + 0.02)


def _paint_sign(p: _Painter, x: float, y: float, width: float) -> None:
    """A board with writing for the visible camera, blank for the infrared one."""
    height, temperature = width * p.rng.uniform(0.35, 0.9), p.rng.uniform(0.3, 0.6)
    dark = p.rng.random() < 0.4
    board, ink = (p.rng.uniform(0.1, 0.3), 0.92) if dark else (p.rng.uniform(0.7, 0.95), 0.1)
    p.paint(p.polygons(_box(x, y, width, height)), board, temperature)
    word = "".join(p.rng.choice(list(_TEXT), int(p.rng.integers(3, 7))))
    lines = 1 if height < 0.6 * width else 2
    for line in range(lines):
        at = y + height * (0.15 + 0.42 * line)
        mask = p.letters(word, x + 0.08 * width, at, 0.36 * height * (2 / (lines + 1)))
        p.paint(mask, ink, temperature)


def _paint_fence(p: _Painter) -> None:
    """Thin regular pickets or mesh."""
    y, height = p.rng.uniform(0.5, 0.8), p.rng.uniform(0.08, 0.2)
    step = p.rng.uniform(0.018, 0.04)
    xs = np.arange(p.rng.uniform(0, 0.4), p.rng.uniform(0.6, 1.0), step)
    lean = p.rng.choice([0.0, height * 0.6])
    wires: Lines = [([(x, y), (x + lean, y + height)], 0.005) for x in xs]
    wires += [([(x + lean, y), (x, y + height)], 0.005) for x in xs]
    p.paint(p.lines(wires), p.rng.choice([0.15, 0.85]), p.rng.uniform(0.4, 0.6))


def _paint_person(p: _Painter, x: float, foot: float, height: float) -> None:
    """A standing or walking figure: dull clothes in the visible, the hottest thing in infrared."""
    stride = p.rng.uniform(-0.12, 0.12) * height
    head = p.ellipses((x, foot - 0.92 * height, 0.07 * height, 0.085 * height))
    shoulder, hip = foot - 0.82 * height, foot - 0.45 * height
    chest, waist = 0.13 * height, 0.1 * height
    corners = [(x - chest, shoulder), (x + chest, shoulder), (x + waist, hip), (x - waist, hip)]
    torso = p.polygons(corners)
    segments: Lines = []
    for sign in (-1, 1):
        ankle = x + sign * (0.06 * height + stride)
        segments.append(([(x + sign * 0.05 * height, hip), (ankle, foot)], 0.1 * height))
    for sign in (-1, 1):
        hand = x + sign * (0.18 * height + stride)
        segments.append(([(x + sign * 0.14 * height, shoulder), (hand, hip)], 0.06 * height))
    limbs = p.lines(segments)
    heat = p.rng.uniform(0.82, 1.0)
    folds = 0.05 * p.noise(1.0)
    p.paint(limbs, p.rng.uniform(0.08, 0.45), heat - p.rng.uniform(0, 0.12))
    p.paint(torso, p.rng.uniform(0.08, 0.8) + folds, heat - p.rng.uniform(0, 0.12) + 0.6 * folds)
    p.paint(head, p.rng.uniform(0.2, 0.6), heat)
    p.targets = np.maximum(p.targets, np.maximum.reduce([head, torso, limbs]))


def _paint_vehicle(p: _Painter, x: float, foot: float, length: float) -> None:
    """Car, van or truck: hot wheels and underside, glass as cold as the sky it mirrors."""
    height = length * p.rng.uniform(0.3, 0.55)
    belt, roof = foot - 0.55 * height, foot - height
    bonnet = p.rng.uniform(0.0, 0.3) * length
    body = [(x, belt), (x + bonnet, belt), (x + bonnet * 1.4, roof)]
    body += [(x + 0.9 * length, roof), (x + length, belt), (x + length, foot - 0.12 * height)]
    body += [(x, foot - 0.12 * height)]
    heat, albedo = p.rng.uniform(0.5, 0.85), p.rng.uniform(0.05, 0.95)
    shell = p.polygons(body)
    shine = np.linspace(0.12, -0.12, p.size, dtype=np.float32)[:, None]
    p.paint(shell, albedo + shine, heat + 0.04 * p.noise(1.6))
    glass_top, glass_left = roof + 0.1 * height, x + bonnet * 1.4 + 0.04 * length
    panes = [
        _box(glass_left, glass_top, 0.2 * length, 0.3 * height),
        _box(glass_left + 0.25 * length, glass_top, 0.2 * length, 0.3 * height),
    ]
    p.paint(p.polygons(*panes), p.rng.uniform(0.05, 0.3), p.rng.uniform(0.15, 0.4))
    radius = 0.17 * height
    wheels = [x + 0.2 * length, x + 0.8 * length]
    tyres = p.ellipses(*((w, foot - radius, radius, radius) for w in wheels))
    p.paint(tyres, 0.08, p.rng.uniform(0.75, 1.0))
    hubs = p.ellipses(*((w, foot - radius, radius / 2, radius / 2) for w in wheels))
    p.paint(hubs, p.rng.uniform(0.3, 0.8), p.rng.uniform(0.6, 0.9))
    engine = p.ellipses((x + 0.15 * length, belt + 0.15 * height, 0.14 * length, 0.15 * height))
    p.heat += 0.25 * _blur(engine, p.size * 0.01) * shell
    p.lamps.append((x + 0.02 * length, belt + 0.12 * height, 0.01 + 0.02 * length))
    hot = np.maximum(shell * (heat > 0.62), np.maximum(tyres, engine * shell))
    p.targets = np.maximum(p.targets, hot)


def _paint_targets(p: _Painter, people: int, vehicles: int) -> None:
    """Vehicles and people on the ground, far ones small and near ones large."""
    for _ in range(vehicles):
        depth = p.rng.uniform(0.05, 0.9)
        foot = p.horizon + 0.03 + depth * (0.95 - p.horizon)
        _paint_vehicle(p, p.rng.uniform(-0.1, 0.85), foot, 0.07 + 0.45 * depth**1.3)
    for _ in range(people):
        depth = p.rng.uniform(0.0, 0.9)
        foot = p.horizon + 0.05 + depth * (0.94 - p.horizon)
        _paint_person(p, p.rng.uniform(0.05, 0.95), foot, 0.06 + 0.4 * depth**1.3)


def _road_scene(p: _Painter) -> None:
    horizon = p.rng.uniform(0.25, 0.55)
    _paint_sky(p, horizon)
    if p.rng.random() < 0.4:
        _paint_hills(p)
    _paint_ground(p, horizon)
    for _ in range(int(p.rng.integers(0, 4))):
        width, height = p.rng.uniform(0.12, 0.45), p.rng.uniform(0.1, 0.5)
        side = p.rng.choice([p.rng.uniform(-0.1, 0.2), p.rng.uniform(0.6, 0.95)])
        _paint_building(p, side, horizon + 0.03 - height, width, height + 0.02)
    for _ in range(int(p.rng.integers(1, 5))):
        size = p.rng.uniform(0.15, 0.6)
        x = p.rng.choice([p.rng.uniform(-0.05, 0.35), p.rng.uniform(0.6, 1.05)])
        _paint_foliage(p, x, horizon - 0.1 * p.rng.random(), size, size * p.rng.uniform(0.6, 1.2))
    _paint_road(p)
    _paint_poles(p, int(p.rng.integers(0, 5)))
    if p.rng.random() < 0.5:
        _paint_sign(p, p.rng.uniform(0, 0.85), p.rng.uniform(0.1, 0.45), p.rng.uniform(0.06, 0.2))
    _paint_targets(p, int(p.rng.integers(0, 4)), int(p.rng.integers(0, 4)))


def _urban_scene(p: _Painter) -> None:
    horizon = p.rng.uniform(0.5, 0.75)
    _paint_sky(p, horizon)
    _paint_ground(p, horizon)
    edge = p.rng.uniform(-0.2, 0.05)
    while edge < 1:
        width, top = p.rng.uniform(0.2, 0.6), p.rng.uniform(-0.05, 0.35)
        _paint_building(p, edge, top, width, horizon + 0.02 - top)
        edge += width + p.rng.choice([0.0, 0.08])
    for _ in range(int(p.rng.integers(0, 3))):
        _paint_foliage(p, p.rng.uniform(0, 1), horizon - 0.1, p.rng.uniform(0.15, 0.35), 0.3)
    _paint_poles(p, int(p.rng.integers(0, 4)))
    if p.rng.random() < 0.7:
        _paint_sign(p, p.rng.uniform(0, 0.8), p.rng.uniform(0.1, 0.6), p.rng.uniform(0.1, 0.3))
    _paint_targets(p, int(p.rng.integers(1, 5)), int(p.rng.integers(0, 3)))


def _nature_scene(p: _Painter) -> None:
    horizon = p.rng.uniform(0.05, 0.5)
    _paint_sky(p, horizon)
    _paint_hills(p)
    _paint_ground(p, horizon)
    for _ in range(int(p.rng.integers(1, 6))):
        size = p.rng.uniform(0.15, 0.7)
        _paint_foliage(p, p.rng.uniform(0, 1), horizon + p.rng.uniform(-0.1, 0.4), size, size * 0.8)
    for _ in range(int(p.rng.integers(0, 5))):
        height = p.rng.uniform(0.25, 0.7)
        _paint_bare_tree(p, p.rng.uniform(0, 1), horizon + p.rng.uniform(0.1, 0.45), height)
    if p.rng.random() < 0.3:
        _paint_fence(p)
    _paint_targets(p, int(p.rng.integers(0, 3)), int(p.rng.random() < 0.4))


def _texture_scene(p: _Painter) -> None:
    """No sky, no vanishing point: patches of ground, wall and leaves, as small crops show."""
    _paint_ground(p, 0.0)
    for _ in range(int(p.rng.integers(2, 6))):
        x, y, side = p.rng.uniform(-0.2, 0.8), p.rng.uniform(-0.2, 0.8), p.rng.uniform(0.3, 0.8)
        if p.rng.random() < 0.5:
            _paint_foliage(p, x + side / 2, y + side / 2, side, side)
        else:
            _paint_building(p, x, y, side, side * p.rng.uniform(0.5, 1.5))
    if p.rng.random() < 0.4:
        _paint_fence(p)
    if p.rng.random() < 0.5:
        _paint_sign(p, p.rng.uniform(0, 0.6), p.rng.uniform(0.1, 0.6), p.rng.uniform(0.15, 0.5))
    _paint_targets(p, int(p.rng.integers(0, 3)), 0)


def _closeup_scene(p: _Painter) -> None:
    """One large target before a plain street."""
    horizon = p.rng.uniform(0.3, 0.6)
    _paint_sky(p, horizon)
    _paint_ground(p, horizon)
    if p.rng.random() < 0.6:
        _paint_building(p, p.rng.uniform(-0.2, 0.3), 0.05, p.rng.uniform(0.5, 1.0), horizon)
    else:
        _paint_foliage(p, p.rng.uniform(0, 1), horizon, 0.9, 0.7)
    if p.rng.random() < 0.5:
        _paint_vehicle(p, p.rng.uniform(-0.2, 0.3), p.rng.uniform(0.8, 0.98), p.rng.uniform(0.6, 1))
    for _ in range(int(p.rng.integers(1, 3))):
        _paint_person(p, p.rng.uniform(0.1, 0.9), p.rng.uniform(0.85, 1.1), p.rng.uniform(0.4, 0.9))


_KINDS = (_road_scene, _urban_scene, _nature_scene, _texture_scene, _closeup_scene)
_KIND_WEIGHTS = (0.38, 0.2, 0.2, 0.1, 0.12)


def _visible_camera(p: _Painter, night: bool) -> Array:
    """Light falls on the albedo; the sensor compresses what comes back."""
    rng, size = p.rng, p.size
    axis = np.linspace(0, 1, size, dtype=np.float32)
    albedo = np.clip(p.albedo, 0.02, 1)
    if night:
        light = np.full((size, size), rng.uniform(0.06, 0.55), np.float32)
        bloom = np.zeros((size, size), np.float32)
        ranges = (0, 1), (0, 0.6), (0.004, 0.015)
        street = [tuple(rng.uniform(*limits) for limits in ranges) for _ in range(3)]
        for x, y, radius in p.lamps + street:
            square = (axis[None] - x) ** 2 + (axis[:, None] - y) ** 2
            light += rng.uniform(0.2, 0.6) * np.exp(-square / (2 * rng.uniform(0.08, 0.25) ** 2))
            bloom += 1.2 * np.exp(-square / (2 * radius**2)) + 0.15 * np.exp(-square / 0.004)
        image = albedo * (1 - rng.uniform(0.7, 0.95) * p.sky) * light + bloom
        lift = rng.uniform(0, 0.3)
    else:
        shade = np.clip(p.shade, 0, 0.7)
        if rng.random() < 0.5:  # shadows cast by what stands outside the picture
            edge = _sigmoid(20 * (p.noise(1.8) - rng.uniform(0.2, 1.2)))
            shade = np.maximum(shade, rng.uniform(0.3, 0.6) * edge * (1 - p.sky))
        light = 1 + rng.uniform(-0.2, 0.2) * (axis[None] - 0.5)
        light = light + rng.uniform(-0.2, 0.2) * axis[:, None]
        image = albedo * light * (1 - shade) * rng.uniform(0.8, 1.1)
        lift = rng.uniform(0, 0.35)
    image = np.clip(image, 0, None) ** rng.uniform(0.6, 1.2)
    image = _blur(image, rng.uniform(0.2, 1.3)) + rng.uniform(0.002, 0.012) * _white(p)
    return np.clip(lift + (1 - lift) * image, 0, 1).astype(np.float32)


def _add_haze(visible: Array, p: _Painter) -> Array:
    """Air light that thickens towards the horizon."""
    axis = np.linspace(0, 1, p.size, dtype=np.float32)[:, None]
    depth = np.clip(1 - np.abs(axis - p.horizon), 0, 1)
    veil = np.clip(p.rng.uniform(0.45, 0.75) * depth + 0.05 * p.noise(1.8), 0, 0.85)
    return (visible * (1 - veil) + veil * p.rng.uniform(0.7, 0.9)).astype(np.float32)


def _infrared_camera(p: _Painter) -> Array:
    """Heat, softened by optics, stretched by automatic gain, striped by the read-out."""
    rng = p.rng
    heat = _blur(p.heat, p.size * rng.uniform(0.001, 0.005))
    if rng.random() < 0.7:  # local gain: brings out weak contrast, leaves dark rims round targets
        reach = p.size * rng.uniform(0.008, 0.08)
        heat = heat + rng.uniform(0.5, 2.5) * (heat - _blur(heat, reach))
    heat = heat + rng.uniform(0, 0.015) * _white(p)
    heat = heat + rng.uniform(0, 0.012) * rng.standard_normal((p.size, 1))
    low, high = np.percentile(heat, (rng.uniform(0, 3), rng.uniform(97.5, 100)))
    image = np.clip((heat - low) / max(float(high - low), 0.15), 0, 1) ** rng.uniform(0.7, 1.4)
    floor, ceiling = rng.uniform(0, 0.12), rng.uniform(0.8, 1.0)
    return (floor + (ceiling - floor) * image).astype(np.float32)


def _white(p: _Painter) -> Array:
    return p.rng.standard_normal((p.size, p.size), dtype=np.float32)


def _auto_expose(image: Array, spread: float = 0.2) -> Array:
    """Move mean and deviation half way or more towards a well exposed picture; keeps order."""
    deviation = float(image.std()) + 1e-3
    gain = np.clip(spread / deviation, 0.85, 2.5)
    centre = 0.7 * 0.46 + 0.3 * float(image.mean())
    stretched = (image - float(image.mean())) * gain + centre
    # A soft shoulder instead of a hard clip: lamps and sky keep what structure they have.
    return (_sigmoid(4.4 * (stretched - 0.5)) * 1.12 - 0.06).astype(np.float32)


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-np.clip(x, -30, 30)))


def _blur(image: Array, sigma: float) -> Array:
    """Gaussian blur as two matrix products; edges are renormalised, so nothing darkens there."""
    axis = np.arange(image.shape[0], dtype=np.float32)
    columns = np.arange(image.shape[1], dtype=np.float32)
    return _kernel(axis, sigma) @ image @ _kernel(columns, sigma).T


def _kernel(axis: Array, sigma: float) -> Array:
    weights = np.exp(-((axis[:, None] - axis[None]) ** 2) / (2 * max(sigma, 0.05) ** 2))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
