"""Draws the values that a job offer's facts can take: names, roles, salaries, dates, codes.

Values are put together from many small parts, so that a model cannot know them by heart and has to
copy them from the prompt. It does not know which value is right in which offer, nor how a value is
phrased in a sentence.
"""

import random
from collections.abc import Callable


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _words(
    """
    Amara Bruno Celia Dario Edith Farid Greta Hugo Ines Jonas Kavya Liam Mirela Nadir Olga Pavel
    Quinn Rosa Samir Tove Umar Vera Wim Ximena Yusuf Zora Bianca Clemens Dunja Elias Fiona Gustav
    Helga Ivan Judit Karim
    """
)
SURNAME_HEADS = _words(
    """
    Bram Cald Dren Esk Fjor Gant Holm Ivers Jask Kest Lund Mord Norr Ost Pell Quar Rusk Stav Thorn
    Ulm Varg Wold Yarr Zell
    """
)
SURNAME_TAILS = _words(
    """
    aby beck combe dahl ersen field gate hurst ini kamp lowe mann nova oski quist ridge stein ton
    ulu wick
    """
)
COMPANY_HEADS = _words(
    """
    Aero Bio Cryo Dyna Exo Ferro Geo Hydro Infra Juno Kilo Lumi Meta Nano Omni Petro Quanta Rota
    Sola Terra Ultra Vita Xeno Zeta
    """
)
COMPANY_TAILS = _words(
    """
    byte cast dock fuse grid hive jet link mint nest path rift sense trix vault works
    """
)
COMPANY_KINDS = _words(
    """
    Labs Systems Robotics Foods Analytics Energy Motors Health Media Bank Marine Tools
    """
)
LEVELS = _words("Junior Senior Lead Staff Principal Associate Interim Chief")
AREAS = _words(
    """
    Data Backend Security Growth Network Payments Quality Hardware Logistics Research Cloud Sales
    """
)
JOBS = _words(
    """
    Engineer Analyst Designer Manager Scientist Planner Architect Auditor Trainer Writer
    """
)
CITY_HEADS = _words(
    """
    Alder Birch Clear Dun Elm Fair Glen Hart Iron King Lake Mill North Oak Pine Raven Stone Swan
    West Winter
    """
)
CITY_TAILS = _words("bay bridge burg dale ford ham haven mere mouth port stead ville wall wood")
MONTHS = _words(
    """
    January February March April May June July August September October November December
    """
)
CODE_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"


# The order of the random draws within a value is part of the recipe.
DRAWS: dict[str, Callable[[random.Random], str]] = {
    "role": lambda rng: f"{rng.choice(LEVELS)} {rng.choice(AREAS)} {rng.choice(JOBS)}",
    "company": lambda rng: (
        f"{rng.choice(COMPANY_HEADS)}{rng.choice(COMPANY_TAILS)} {rng.choice(COMPANY_KINDS)}"
    ),
    "salary": lambda rng: f"{rng.randint(100, 399)}K",
    "city": lambda rng: f"{rng.choice(CITY_HEADS)}{rng.choice(CITY_TAILS)}",
    "start": lambda rng: f"{rng.randint(1, 28)} {rng.choice(MONTHS)} {rng.randint(2027, 2029)}",
    "manager": lambda rng: (
        f"{rng.choice(FIRST_NAMES)} {rng.choice(SURNAME_HEADS)}{rng.choice(SURNAME_TAILS)}"
    ),
    "leave": lambda rng: f"{rng.randint(20, 44)} days",
    "bonus": lambda rng: f"{rng.randint(5, 30)}%",
    "reference": lambda rng: (
        f"{rng.choice(CODE_LETTERS)}{rng.choice(CODE_LETTERS)}-{rng.randint(1000, 9999)}"
    ),
}


def draw(field: str, rng: random.Random) -> str:
    """One value of a field. Right and wrong values are drawn alike."""
    return DRAWS[field](rng)


def draw_other(field: str, value: str, rng: random.Random) -> str:
    """A value of the same field that is not `value`: the same draw, repeated until it differs."""
    while (other := draw(field, rng)) == value:
        pass
    return other
