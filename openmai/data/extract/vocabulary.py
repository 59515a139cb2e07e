"""Words that tell running text (function words of a dozen languages) from the furniture of a page."""

from __future__ import annotations

_STOP = (
    "the of and to in a is that for it was on are as with his they at be this from have or by one had not but what all were when we there"
    " can an your which their said if do will each about how up out them then she many some so these would other into has more her two him"
    " der die und das den von zu mit sich des auf für ist im dem nicht ein eine als auch es an werden aus er hat dass sie nach wird bei"
    " einer um am sind noch wie einem über einen so zum war haben nur oder aber vor zur bis mehr durch man sein wurde sei ich wir"
    " de la le et les des en un du une que est pour qui dans par plus pas au sur ne se ce il sont mais ou avec son elle aux cette nous"
    " el los que por con para las una su al lo como más pero sus le ya este sí porque esta entre cuando muy sin sobre"
    " di che è per il non si da con sono del gli della nel alla i w na z do nie to że jest się o jak и в не на что с по как это он"
    " van het een dat op te zijn voor met niet aan er om ook och att det som är av på för med har inte"
)
_CHROME = (
    "copyright © cookie cookies newsletter share comment comments kommentar kommentare login register sign subscribe menu home search"
    " impressum datenschutz kontakt privacy terms rights reserved read more weiterlesen mehr teilen drucken print email e-mail facebook"
    " twitter tweet pinterest whatsapp google tags tag related posted published author by von uhr updated advertisement anzeige follow"
    " reply antworten permalink previous next back top zurück weiter seite page archive categories kategorien abonnieren anmelden"
    " registrieren partager commentaires commentaire lire aussi suite publié mots-clés contact compartir comentarios leer más foto bild"
    " quelle source photo image video loading click hier here versand preis warenkorb"
)
STOP, CHROME = frozenset(_STOP.split()), frozenset(_CHROME.split())
