"""What the class, id, role and item property of an element say about its content, as one bit per group of words."""

from __future__ import annotations

# Each group is one bit and one feature (how far up the next element with such a name is). A word ending in * stands for all that begin so.
GROUPS = {
    "content": "content contents article articles articlebody body entry post posts text story main hentry artikel beitrag inhalt"
    " contenu texte corps prose markdown richtext wysiwyg copy blog news doc document docs description beschreibung detail"
    " details maincontent article-body entry-content post-content texto contenido cuerpo noticia artykul tekst",
    "comment": "comment comments commentlist commentary kommentar kommentare commentaire commentaires disqus reply replies respond"
    " response responses discussion guestbook feedback pingback trackback livefyre komentarz comentarios",
    "nav": "nav navi navbar navigation navigator menu menue menus breadcrumb breadcrumbs crumb crumbs brotkrumen pagination"
    " paginator pager paging pagelinks toc tabs tab skip skiplink jump sitemap topbar submenu sitenav tree hierarchy",
    "side": "sidebar side aside widget widgets rail secondary marginal marginalspalte randspalte spalte col2 col3 right rechts left"
    " links complementary column sidecol supplement extra",
    "foot": "footer foot bottom fuss fusszeile copyright legal imprint impressum colophon contentinfo siteinfo site-info disclaimer",
    "head": "header head masthead banner top logo branding hero kopf topnav sitename site-title",
    "related": "related relateds relatedposts recommend recommended recommendation recommendations similar more mehr also alsoread"
    " popular latest recent trending other others next previous prev readmore further weitere verwandte crosslinks linklist"
    " outbrain taboola carousel slider feed archive archiv meistgelesen mostread ranking aktuell siehe explore discover"
    " plista nrelate yarpp zemanta upnext",
    "teaser": "teaser teasers promo promos promotion card cards tile tiles box boxes grid list listing listings item items module"
    " modules block panel snippet entries results loop gallery slides",
    "share": "share sharing shares shared social socials sociable addthis addtoany facebook twitter tweet pinterest whatsapp"
    " linkedin like likes follow followus bookmark bookmarks sharedaddy shariff jp ssba sharebar teilen gplus google plusone"
    " heateor sns rss",
    "advert": "ad ads advert adverts advertisement advertising adsense adslot adunit adbox adcontainer anzeige anzeigen werbung"
    " sponsor sponsored sponsors commercial affiliate dfp gpt native commerce shop product products cart basket warenkorb"
    " price offer",
    "byline": "byline author authors autor autoren date datum dates time timestamp published publish posted postmeta meta metadata"
    " info infos source quelle dateline credit credits vcard bio about profile avatar writer datetime updated contributor"
    " posted-on entry-meta",
    "tags": "tag tags taglist tagcloud keywords keyword category categories kategorie kategorien cat cats topics topic label labels"
    " schlagworte schlagwort themen thema filed taxonomy postmetadata rubrik filedunder",
    "media": "caption captions wp-caption figcaption image images img bild bilder photo photos foto fotos gallery galerie video"
    " videos media player slideshow lightbox thumbnail thumb thumbs picture figure audio podcast bildunterschrift infobox"
    " embed",
    "form": "cookie cookies consent gdpr privacy datenschutz popup modal overlay dialog notice newsletter subscribe subscription"
    " signup login signin register registration account user paywall search suche searchform form poll survey rating ratings"
    " vote voting print toolbar tools tool button buttons btn actions action controls download subscribe-box optin cta"
    " contact kontakt alert message messages",
    "title": "title titel headline heading header-title subtitle subline subhead ueberschrift titre caption-title page-title entry- title",
    "intro": "intro lead lede summary excerpt abstract vorspann standfirst dek kicker introduction lead-text subheadline zusammenfassung",
    "note": "footnote footnotes references reference reflist bibliography endnotes literatur sources fussnoten notes citation",
    "code": "code highlight sourcecode syntax codehilite listing snippet programlisting function method class signature sig member api",
}
BITS = {name: 1 << position for position, name in enumerate(GROUPS)}
HIDDEN = 1 << len(BITS)
LEFT_OUT = HIDDEN << 1
FORMULA = HIDDEN << 2  # may be hidden: what is seen instead is an image or glyphs

# Nothing to read: gutters of line numbers, marks that link to their own heading, glyphs of formulas, what only screen readers say.
_UNREAD = (
    "katex-html mathjax mathjax_preview mathjax_svg mathjax_chtml mjx-chtml mjx-math lineno linenos linenumber linenumbers line-number"
    " line-numbers linenospecial gutter rouge-gutter headerlink header-anchor anchorjs-link hash-link sr-only screen-reader-text"
    " visually-hidden visuallyhidden mw-editsection noprint"
)
UNREAD = _UNREAD.split()

NAMES: dict[str, int] = {"katex": FORMULA, "mathml": FORMULA, "mwe": FORMULA}
for _group, _words in GROUPS.items():
    for _word in _words.split():
        NAMES[_word] = NAMES.get(_word, 0) | BITS[_group]
