"""The brands of the logo set: families that share a first word, and singles.

A family's word ("Google") does not identify a member: only the picture shows
which one is meant. The icons, titles and brand colours are from the package
simpleicons (CC0); this file chooses among them, and leaves out icons that look
like one chosen before.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache

import numpy as np
import resvg_py
from numpy.typing import NDArray
from PIL import Image
from simpleicons.all import icons

MASK_SIZE = 192
FAMILY_CAP = 12
ALIKE = 0.93  # cosine of two icons' shapes, above which they look the same

FAMILIES = (
    "Google", "Apache", "Microsoft", "Amazon", "Adobe", "Apple", "PlayStation", "GNU",
    "Nintendo", "Windows", "YouTube", "Eclipse", "Azure", "React", "GitHub", "Linux",
    "Android", "Facebook", "Affinity", "AWS",
)  # fmt: skip

# Well-known members of the large families: they come first.
KNOWN_MEMBERS = """
Google; Google Chrome; Google Drive; Google Maps; Google Play; Google Photos; Google Calendar;
Google Analytics; Google Translate; Google Earth; Google Assistant; Google Cloud; Google Ads;
Google Keep; Google Pay; Apache; Apache Airflow; Apache Cassandra; Apache CouchDB; Apache Flink;
Apache Hadoop; Apache Hive; Apache Kafka; Apache Maven; Apache OpenOffice; Apache Solr;
Apache Spark; Apache Tomcat; Microsoft; Microsoft Azure; Microsoft Bing; Microsoft Edge;
Microsoft Excel; Microsoft OneDrive; Microsoft Outlook; Microsoft PowerPoint; Microsoft Teams;
Microsoft Word; Microsoft Access; Microsoft SQL Server; Microsoft Translator; Amazon;
Amazon Alexa; Amazon AWS; Amazon DynamoDB; Amazon EC2; Amazon Fire TV; Amazon Games; Amazon Pay;
Amazon Prime; Amazon RDS; Amazon S3; Amazon CloudWatch; Adobe; Adobe Acrobat Reader;
Adobe After Effects; Adobe Creative Cloud; Adobe Dreamweaver; Adobe Fonts; Adobe Illustrator;
Adobe InDesign; Adobe Lightroom; Adobe Photoshop; Adobe Premiere Pro; Adobe XD
"""

SINGLES = """
1Password; Acer; Adidas; Airbnb; Airbus; Airtable; Alfa Romeo; AMD; American Express; Angular;
Ansible; Arch Linux; Arduino; Asana; Atari; Atlassian; Atom; AT&T; Audacity; Audi; Audible;
Autodesk; Babel; Baidu; Bandcamp; Binance; Bitbucket; Bitcoin; Blackberry; Blender; Bluetooth; BMW;
Boeing; Bootstrap; Box; Brave; Burger King; Canva; Chevrolet; Cisco; Citroën; Cloudflare; CodePen;
Codecademy; Coinbase; Coursera; Creative Commons; CSS3; Dailymotion; Dart; Datadog; Debian; Deezer;
Dell; DeviantArt; DHL; Digg; DigitalOcean; Discord; Django; Docker; DoorDash; Dribbble; Dropbox;
Drupal; Ducati; DuckDuckGo; Duolingo; Electron; Elasticsearch; Elixir; Epic Games; Ethereum; Etsy;
Evernote; FedEx; Fedora; Ferrari; Fiat; Figma; Firebase; Firefox; Fitbit; Flask; Flickr; Flutter;
Ford; FreeBSD; GIMP; GIPHY; GitLab; GNOME; Go; Godot Engine; Goodreads; Grafana; Grammarly;
GraphQL; Haskell; HBO; Heroku; Homebrew; Honda; HTML5; Huawei; HubSpot; Hulu; Hyundai; IKEA; IMDb;
Inkscape; Instagram; Intel; JavaScript; Jeep; Jenkins; JetBrains; Jira; JSON; Julia; Jupyter;
Kaggle; Keras; KFC; Kia; Kickstarter; Kotlin; Krita; Kubernetes; Lamborghini; Last.fm; LaTeX;
Lenovo; LG; LinkedIn; Logitech; Lua; Lufthansa; Lyft; MariaDB; Markdown; MasterCard; Mastodon;
Mazda; McDonald's; McLaren; Medium; Mercedes; Messenger; Meta; Minecraft; Mitsubishi; MongoDB;
Motorola; Mozilla; MySQL; NASA; NBA; Neo4j; Neovim; Netflix; NGINX; Nike; Nissan; Node.js; Notion;
npm; NumPy; NVIDIA; Obsidian; OnePlus; Opel; OpenAI; OpenCV; OpenStreetMap; Opera; Oracle; pandas;
Patreon; PayPal; Pepsi; Perl; Peugeot; PHP; Pinterest; Plex; Pocket; Porsche; PostgreSQL; Postman;
Prometheus; Puma; PyCharm; PyPI; Python; PyTorch; Qt; Quora; RabbitMQ; Raspberry Pi; Reddit; Redis;
Renault; Revolut; Roblox; Rolls-Royce; RSS; Ruby; Rust; Safari; Salesforce; Samsung; Sass; Scala;
Scratch; Sega; Selenium; Shazam; Shell; Shopify; Signal; Sketch; Skype; Slack; Snapchat; Snowflake;
Sonos; SoundCloud; SpaceX; Spotify; Square; Stack Overflow; Starbucks; Steam; Strava; Stripe;
Subaru; Sublime Text; Suzuki; Svelte; Swift; Symfony; Taco Bell; Target; TED; Telegram; TensorFlow;
Terraform; Tesla; TikTok; Tinder; Todoist; Tor Browser; Toyota; Trello; Tripadvisor; Tumblr;
Twilio; Twitch; Twitter; TypeScript; Uber; Ubisoft; Ubuntu; Udemy; Unity; Unreal Engine; UPS;
Valve; Viber; Vim; Vimeo; Visa; VLC media player; VMware; Volkswagen; Volvo; Vue.js; Walmart; Waze;
WeChat; WhatsApp; Wikipedia; Wix; WordPress; WWE; Xbox; Xiaomi; Yahoo!; Yelp; Zoom; ŠKODA; eBay
"""


@dataclass(frozen=True, eq=False)
class Brand:
    """One entity: name, family's word if it has one, shape and colour of its icon."""

    id: str
    name: str
    family: str | None
    colour: tuple[int, int, int]
    shape: Image.Image


@cache
def brands() -> tuple[Brand, ...]:
    """All brands of the set, families first, without two that look alike."""
    chosen: list[Brand] = []
    outlines: list[NDArray[np.float32]] = []
    names: set[str] = set()
    sizes = dict.fromkeys(FAMILIES, 0)
    for family, title in candidates():
        if title in names or (family and sizes[family] >= FAMILY_CAP):
            continue
        brand = load(title, family)
        line = outline(brand)
        if any(float(line @ other) > ALIKE for other in outlines):
            continue
        chosen.append(brand)
        outlines.append(line)
        names.add(title)
        if family:
            sizes[family] += 1
    return tuple(chosen)


def candidates() -> list[tuple[str | None, str]]:
    """(family, title) pairs in order of preference."""
    titles = sorted({icon.title for icon in icons.values()})
    known = listed(KNOWN_MEMBERS)
    members = [
        (family, title) for family in FAMILIES for title in known + titles if title.split()[0] == family
    ]
    return members + [(None, title) for title in listed(SINGLES) if title in titles]


def listed(text: str) -> list[str]:
    """The names in a semicolon-separated block."""
    return [name for name in (" ".join(part.split()) for part in text.split(";")) if name]


def load(title: str, family: str | None) -> Brand:
    """A brand with its icon's shape rendered once, as an 8-bit mask."""
    icon = next(icon for icon in icons.values() if icon.title == title)
    png = resvg_py.svg_to_bytes(svg_string=icon.svg, width=MASK_SIZE, height=MASK_SIZE)
    red, green, blue = bytes.fromhex(icon.hex)
    shape = Image.open(io.BytesIO(bytes(png))).convert("RGBA").getchannel("A")
    return Brand(icon.slug, title, family, (red, green, blue), shape)


def outline(brand: Brand) -> NDArray[np.float32]:
    """A small centred unit vector of the shape; the cosine of two is their similarity."""
    small = np.asarray(brand.shape.resize((32, 32), Image.Resampling.BOX), np.float32).ravel()
    small -= small.mean()
    return small / (float(np.linalg.norm(small)) or 1.0)
