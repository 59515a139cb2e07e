"""Public facts that tell private data from other numbers and words."""

from __future__ import annotations

# (lowest prefix, highest prefix, lengths): Visa, Mastercard, American Express, Discover, JCB, Diners Club, UnionPay, Maestro.
CARD_PREFIXES: tuple[tuple[int, int, tuple[int, ...]], ...] = (
    (4, 4, (13, 16, 19)),
    (51, 55, (16,)),
    (2221, 2720, (16,)),
    (34, 34, (15,)),
    (37, 37, (15,)),
    (6011, 6011, (16, 19)),
    (644, 649, (16, 19)),
    (65, 65, (16, 19)),
    (3528, 3589, (16, 19)),
    (300, 305, (14,)),
    (36, 36, (14,)),
    (38, 39, (14,)),
    (62, 62, (16, 19)),
    (5018, 5018, (16, 19)),
    (5020, 5020, (16, 19)),
    (5038, 5038, (16, 19)),
    (6304, 6304, (16, 19)),
)

# Characters of an IBAN by country, from the SWIFT registry.
_IBAN = """
AD:24 AE:23 AL:28 AT:20 AZ:28 BA:20 BE:16 BG:22 BH:22 BI:27 BR:29 BY:28 CH:21 CR:22 CY:28 CZ:24 DE:22 DJ:27 DK:18 DO:28 EE:20 EG:29
ES:24 FI:18 FK:18 FO:18 FR:27 GB:22 GE:22 GI:23 GL:18 GR:27 GT:28 HR:21 HU:28 IE:22 IL:23 IQ:23 IS:26 IT:27 JO:30 KW:30 KZ:20 LB:28
LC:32 LI:21 LT:20 LU:20 LV:21 LY:25 MC:27 MD:24 ME:22 MK:19 MN:20 MR:27 MT:31 MU:30 NI:28 NL:18 NO:15 OM:23 PK:24 PL:28 PS:29 PT:25
QA:29 RO:24 RS:22 RU:33 SA:24 SC:31 SD:18 SE:24 SI:19 SK:24 SM:27 SO:23 ST:25 SV:28 TL:23 TN:24 TR:26 UA:29 VA:22 VG:24 XK:20 YE:30
"""
IBAN_LENGTHS = {country: int(length) for country, length in (item.split(":") for item in _IBAN.split())}

# Country calling codes but +1, ITU-T E.164.
_CODES = """
7 20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 49 51 52 53 54 55 56 57 58 60 61 62 63 64 65 66 81 82 84 86 90 91 92 93 94 95 98
211 212 213 216 218 220 221 222 223 224 225 226 227 228 229 230 231 232 233 234 235 236 237 238 239 240 241 242 243 244 245 246 247 248
249 250 251 252 253 254 255 256 257 258 260 261 262 263 264 265 266 267 268 269 290 291 297 298 299 350 351 352 353 354 355 356 357 358
359 370 371 372 373 374 375 376 377 378 380 381 382 383 385 386 387 389 420 421 423 500 501 502 503 504 505 506 507 508 509 590 591 592
593 594 595 596 597 598 599 670 672 673 674 675 676 677 678 679 680 681 682 683 685 686 687 688 689 690 691 692 800 808 850 852 853 855
856 870 878 880 881 882 883 886 888 960 961 962 963 964 965 966 967 968 970 971 972 973 974 975 976 977 979 992 993 994 995 996 998
"""
CALLING_CODES = frozenset(_CODES.split())

# Top-level domains of more than two letters that mail is sent to; two letters are a country's.
_TOP = """
com org net edu gov mil int info biz name pro coop aero museum jobs mobi travel tel cat asia post arpa example test invalid local
academy agency app art bank berlin bio blog build business cafe capital care center church city cloud club codes coffee college
community company computer consulting cool design dev digital directory education email energy engineer engineering equipment events
expert express family farm finance fitness foundation fun fund fyi gallery games global gmbh google green group guide guru haus health
help hosting house icu inc industries ink institute international jetzt koeln kiwi land law legal life link live llc lol london love ltd
management market marketing mba media moe money monster network news ngo nyc one ong online partners party page paris photo photography
photos pictures place plus press productions properties pub rocks rip run sale school science scot security services shop show site
social software solutions space store studio study support sydney systems tax team tech technology tips today tokyo tools top tours town
toys trade training tube university vegas ventures vet video vip vision wales watch website wiki wien win wine work works world wtf xyz
yoga zone
"""
TOP_LEVEL = frozenset(_TOP.split())

# File endings that stand where a top-level domain would: logo@2x.png.
_ENDS = "png jpg jpeg gif svg webp ico bmp css js json html htm php pdf txt xml md py"
ASSETS = frozenset(_ENDS.split()) - TOP_LEVEL
