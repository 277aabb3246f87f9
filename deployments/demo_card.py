"""Draws a photograph of an ID card: portrait, ghost portrait, invented data, machine-readable lines, tilt and glare."""

import io

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

SIZE = (1012, 638)  # ISO/IEC 7810 ID-1, 85.6 mm x 54 mm, at 300 dots an inch
_SCENE = (1280, 900)
_TILT_DEGREES = 3.5
_INK, _LABEL, _ACCENT = "#16222e", "#5b7283", "#1f5f8b"
_PORTRAIT = (52, 148, 332, 508)  # left, top, right, bottom: 35:45, as passports have it


def draw_card(portrait: Image.Image | None, serial: int) -> bytes:
    """JPEG of a card on a table; `serial` makes cards with the same face differ. No portrait: a blank field."""
    card = _background()
    draw = ImageDraw.Draw(card)
    draw.rectangle((0, 0, SIZE[0], 100), fill=_ACCENT)
    draw.text((52, 30), "UTOPIA", font=_font(44), fill="white")
    draw.text((SIZE[0] - 52, 40), "IDENTITY CARD  ·  SPECIMEN", font=_font(26), fill="#d6e6f2", anchor="ra")
    if portrait is not None:
        _print_portrait(card, portrait)
    else:
        draw.rectangle(_PORTRAIT, fill="#cfd9e0", outline="#9fb0bc", width=2)
    number = f"SPE{serial:06d}"
    for (x, y), label, value in (
        ((372, 132), "Surname", "SAMPLE"),
        ((372, 208), "Given names", "ROBIN ALEX"),
        ((372, 284), "Date of birth", "01 JAN 1980"),
        ((600, 284), "Sex", "X"),
        ((372, 360), "Document number", number),
        ((372, 436), "Date of expiry", "31 DEC 2049"),
    ):
        draw.text((x, y), label, font=_font(19), fill=_LABEL)
        draw.text((x, y + 23), value, font=_font(34), fill=_INK)
    _machine_readable_zone(draw, number)
    return _photograph(card)


def machine_readable_lines(number: str) -> tuple[str, str]:
    """Two lines of 36 characters, as ICAO Doc 9303 part 6 (TD2) has them, for the invented person."""
    birth, expiry = "800101", "491231"
    composite = f"{number}{_check_digit(number)}{birth}{_check_digit(birth)}{expiry}{_check_digit(expiry)}"
    second = f"{number}{_check_digit(number)}UTO{birth}{_check_digit(birth)}<{expiry}{_check_digit(expiry)}"
    return "I<UTOSAMPLE<<ROBIN<ALEX".ljust(36, "<"), second.ljust(35, "<") + _check_digit(composite.ljust(31, "<"))


def _check_digit(text: str) -> str:
    """ICAO Doc 9303 part 3, 4.9: weights 7, 3, 1, modulo 10; letters are 10 to 35, the filler is 0."""
    total = sum((0 if sign == "<" else int(sign, 36)) * (7, 3, 1)[index % 3] for index, sign in enumerate(text))
    return str(total % 10)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)  # travels with Pillow, so cards look the same everywhere


def _background() -> Image.Image:
    """Pale gradient under fine waves, as security printing has them."""
    tint = Image.linear_gradient("L").rotate(90).resize(SIZE)
    card = Image.composite(Image.new("RGB", SIZE, "#dcebf3"), Image.new("RGB", SIZE, "#f3efe2"), tint)
    draw = ImageDraw.Draw(card)
    for offset in range(-SIZE[1], SIZE[0], 14):
        draw.arc((offset, 60, offset + 520, SIZE[1] + 320), 180, 300, fill="#cfe0ea", width=1)
    return card


def _print_portrait(card: Image.Image, portrait: Image.Image) -> None:
    left, top, right, bottom = _PORTRAIT
    printed = portrait.convert("RGB").resize((right - left, bottom - top), Image.Resampling.LANCZOS)
    card.paste(printed, (left, top))
    # The ghost portrait: a third of the height, pale, so that it can be told from the main one by its size.
    ghost = portrait.convert("L").resize((98, 126), Image.Resampling.LANCZOS).convert("RGB")
    corner = (858, 370)
    area = card.crop((*corner, corner[0] + ghost.width, corner[1] + ghost.height))
    card.paste(Image.blend(area, ImageChops.multiply(area, ghost), 0.6), corner)


def _machine_readable_zone(draw: ImageDraw.ImageDraw, number: str) -> None:
    draw.rectangle((0, 528, SIZE[0], SIZE[1]), fill="#f7f7f2")
    step = (SIZE[0] - 104) / 36
    for line, text in enumerate(machine_readable_lines(number)):
        for index, sign in enumerate(text):
            draw.text((52 + step * (index + 0.5), 562 + 44 * line), sign, font=_font(34), fill=_INK, anchor="mm")


def _photograph(card: Image.Image) -> bytes:
    """The card with round corners and a shadow on a table, tilted, with a soft reflection across it."""
    mask = Image.new("L", SIZE, 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, SIZE[0] - 1, SIZE[1] - 1), radius=34, fill=255)
    glare = Image.new("L", SIZE, 0)
    ImageDraw.Draw(glare).polygon([(610, 0), (760, 0), (520, SIZE[1]), (370, SIZE[1])], fill=80)
    card = Image.composite(Image.new("RGB", SIZE, "white"), card, glare.filter(ImageFilter.GaussianBlur(45)))

    dark, light = Image.new("RGB", _SCENE, "#5f4f40"), Image.new("RGB", _SCENE, "#8a7762")
    table = Image.composite(light, dark, Image.linear_gradient("L").resize(_SCENE))
    corner = ((_SCENE[0] - SIZE[0]) // 2, (_SCENE[1] - SIZE[1]) // 2)
    shape, layer = Image.new("L", _SCENE, 0), Image.new("RGB", _SCENE)
    shape.paste(mask, corner)
    layer.paste(card, corner)
    shape = shape.rotate(_TILT_DEGREES, Image.Resampling.BICUBIC)
    layer = layer.rotate(_TILT_DEGREES, Image.Resampling.BICUBIC)
    shadow = ImageChops.offset(shape, 8, 14).filter(ImageFilter.GaussianBlur(16)).point(lambda value: value * 0.6)
    scene = Image.composite(layer, Image.composite(Image.new("RGB", _SCENE, "#1d1712"), table, shadow), shape)
    buffer = io.BytesIO()
    scene.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
