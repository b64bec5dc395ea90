"""The words of every lesson: common English in lists, and syllables for words that exist nowhere."""

# ruff: noqa: SIM905 - word lists read best as text

from __future__ import annotations

NOUNS = """
time year people way day man thing woman life child world school state family student group
country problem hand part place case week company system program question work government number
night point home water room mother area money story fact month lot right study book eye job word
business issue side kind head house service friend father power hour game line end member law car
city community name president team minute idea body information back parent face others level
office door health person art war history party result change morning reason research girl guy
moment air teacher force education foot boy age policy process music market sense nation plan
college interest death experience effect use class control field development role effort rate
heart drug show leader light voice wife police mind price report decision son view relationship
town road arm difference value building action season society tax director position player record
paper space ground form event official matter center couple site project activity star table need
court oil situation cost industry figure street image phone data picture practice piece land
product doctor wall patient worker news test movie north love support technology step baby
computer type attention film tree source organization hair window culture chance brother energy
period course summer plant opportunity term letter condition choice rule daughter south husband
floor campaign material population economy hospital church risk fire future bank press sentence
station weather animal forest river mountain island valley garden machine engine bridge train ship
boat village museum library kitchen winter spring autumn evening evidence success failure memory
danger dream speech century surface measure theory method language author article editor reader
chapter page text summary interview journalist newspaper magazine statement spokesman minister
council committee election vote budget debate crisis investor customer product price share profit
loss deal contract agreement union worker strike factory supply demand software device network
internet website account password user message video camera screen battery sensor robot signal
scientist laboratory experiment sample cell gene virus disease vaccine treatment drug surgery
brain bone blood skin planet moon sun ocean sea beach storm rain snow wind flood drought climate
temperature carbon farm farmer soil crop dragon knight sword shield wizard witch castle king queen
prince soldier warrior hunter beast ghost spirit demon angel crystal stone gold silver iron steel
glass wood flame shadow thunder lightning ice dust ash bone feather wing claw eye
""".split()

VERBS = """
said made took came saw knew got gave found told became left felt put brought began kept held
wrote stood heard let meant set met ran paid sat spoke lay led read grew lost fell sent built
understood drew broke spent cut rose drove bought wore chose asked used wanted looked seemed
turned called needed tried helped talked started showed played moved lived believed happened
provided included continued changed watched followed stopped created opened walked offered
remembered considered appeared served expected stayed reached killed raised passed required
reported decided pulled explained carried developed hoped agreed supported received noticed
described joined reduced established claimed added produced allowed announced published visited
covered finished caused pointed planned studied noted warned tested reviewed launched signed
accused blamed praised questioned approved rejected delayed
""".split()

INFINITIVES = """
be have do say get make go know take see come think look want give use find tell ask work seem
feel try leave call help show play run move live believe bring write sit stand lose pay meet
include continue set learn change lead watch follow stop create speak read spend grow open walk
win offer remember buy wait serve die send expect build stay fall cut reach remain suggest raise
pass sell require report decide pull return explain hope develop carry break receive agree support
hit produce eat cover catch draw choose cause point listen realize place close protect improve
reduce
""".split()

ADJECTIVES = """
good new first last long great little own other old right big high different small large next
early young important few public bad same able local sure free better true whole clear recent
certain personal open red difficult available likely short single medical current wrong private
past foreign fine common poor natural significant similar hot dead central happy serious ready
simple left physical general environmental financial blue democratic dark various entire close
legal religious cold final main green nice huge popular traditional cultural wide deep strong
special human international national political economic social military federal modern former
annual global quiet bright heavy light narrow broken empty strange famous hidden secret golden
silver ancient frozen burning silent eternal cursed sacred fierce mighty gentle hollow crimson
iron wild lost mad royal phantom cosmic arcane infernal celestial mechanical
""".split()

ADVERBS = """
up so out just now how then more also here well only very even back there down still in as too
when never really most on why about over again where right off always today far later soon often
almost already however perhaps finally quickly slowly recently simply clearly certainly probably
actually especially nearly exactly suddenly quietly usually together once twice yesterday tomorrow
instead rather indeed therefore meanwhile
""".split()

PREPOSITIONS = """
of in to for with on at from by about as into like through after over between out against during
without before under around among toward across behind near above beside beyond despite inside
outside since until upon within along
""".split()

LITTLE_WORDS = """
the a an and or but if that this these those he she it they we you I his her its their our your my
who which what when where while because although though than is are was were be been being has
have had do does did will would can could may might must should not no all any some each every
both many much more most other another such one two three four five six seven eight nine ten
hundred thousand million there here them him us me himself itself themselves who's it's don't
didn't wasn't can't I'm we're they're that's isn't couldn't wouldn't
""".split()

PLACES = """
London Paris Berlin Rome Madrid Tokyo China India America Europe Africa Canada Brazil Russia
France Germany Italy Spain Japan Texas California Washington Boston Chicago Dublin Sydney Moscow
Delhi Nigeria Kenya Mexico Egypt Turkey Britain Ireland Scotland Australia Sweden Norway Poland
Greece Atlantic Pacific York England University Street Park
""".split()

FIRST_NAMES = """
James John Robert Michael William David Richard Joseph Thomas Charles Mary Patricia Jennifer Linda
Elizabeth Barbara Susan Jessica Sarah Karen Daniel Matthew Anthony Mark Donald Steven Andrew Paul
Joshua George Kevin Brian Edward Peter Maria Anne Laura Emma Olivia Sophia Ahmed Ali Mohammed Wei
Chen Yuki Ivan Olga Carlos Juan Luis Pedro Fatima Amina
""".split()

LAST_NAMES = """
Smith Johnson Williams Brown Jones Garcia Miller Davis Martin Lee Walker Hall Allen King Wright
Scott Green Baker Adams Nelson Hill Campbell Mitchell Roberts Carter Phillips Evans Turner Parker
Collins Edwards Stewart Morris Murphy Cook Rogers Morgan Cooper Peterson Reed Bailey Bell Kelly
Howard Ward Cox Khan Singh Patel Kim Park Tanaka Sato Novak Ivanov
""".split()

MONTHS = """
January February March April May June July August September October November December
""".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

ABBREVIATIONS = (
    "Mr. Mrs. Dr. St. Prof. Gov. Sen. U.S. U.K. Inc. Ltd. Jr. vs. No. a.m. p.m. J. A. e.g.".split()
)

ONSETS = (
    """
b br bl c ch cl cr d dr f fl fr g gl gr h j k kh kn l m n p ph pl pr qu r rh s sc sh sk sl sm sn
sp st str sw t th tr v w wh x y z zh
""".split()
    + [""] * 6
)
VOWELS = "a e i o u a e i o u y ai au ea ee ei ia ie io oa oo ou ue".split()
CODAS = (
    """
b ck d f ff g k l ll ld lk lm ls lt m mp n nd ng nk ns nt p r rd rk rm rn rs rt s sh ss st t th x
z c ght
""".split()
    + [""] * 16
)
ENDINGS = """
s ed ing er ers ly ion ions ation al ment ness ity ive ous able ful less est ism ist ian ical ance
ence ship man land ton ville berg ford son burg
""".split()
FOREIGN = "é è ê á à ä ö ü ß ñ ç ø å ó í ú ł š ž č ō ū α β".split()
SCRIPTS = (
    "абвгдежзиклмнопрстуфхцчшыэюя",
    "αβγδεζηθικλμνξοπρστυφχψω",
    "的一是不了人我在有他这中大来上国个到说们为子和你地出道也时年",
    "あいうえおかきくけこさしすせそたちつてとなにのはひまみもやゆよらりるれろわん",
    "가나다라마바사아자차카타파하고노도로모보소오조",
    "אבגדהוזחטיכלמנסעפצקרשת",
)
