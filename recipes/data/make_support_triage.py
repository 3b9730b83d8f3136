"""Write the quickstart data: a customer's message in, a strict YAML record out.

Every sentence below was written for this project (Apache-2.0); nothing is copied from elsewhere. The files are made
from these frames with a fixed seed, so running the script again writes the same bytes:

    python make_support_triage.py          # train.jsonl and eval.jsonl in support_triage/ beside this file
    python make_support_triage.py --dev    # dev.jsonl as well, for choosing settings without looking at eval.jsonl

The record has four fields. "type" is what the message is about: delivery (it has not come), broken (damaged or not
working), payment (charges and refunds) or cancel (stop the order). "item" and "order" are copied from the message, and
so is "by", the day or time that the customer asks for, or null where the message names none. YAML and not JSON, because
a value behind ": " is made of the same tokens as in the message, while behind a quotation mark most words are spelled
from other pieces: a small model then has to learn spelling before it can copy.

The held-out rows test copying and reading, not memory: no item, no word of an item, no order number, no date, no
sentence frame and no closing phrase of eval.jsonl is in train.jsonl. `check` proves it on the rows before they are
written.
"""

import argparse
import json
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SEED = 7
SYSTEM = "Triage."
MARK = r"\||\n"  # between the pieces of a table
SIZES = {"train": 520, "eval": 50, "dev": 100}

ITEMS = {
    "train": """
        desk lamp, garden hose, coffee grinder, yoga mat, phone case, bike helmet, cotton quilt, travel mug, electric
        kettle, picture frame, tea pot, wool scarf, bird feeder, baby monitor, rice cooker, leather belt, gaming mouse,
        office chair, shower curtain, toy train, beach umbrella, hair dryer, piano stool, sewing kit, ski mask, fish
        tank, kitchen scale, jewelry box, laptop sleeve, hiking bag, lunch bag, steel pan, glass jar, cutting board,
        tennis racket, swim cap, golf cart, wine rack, cheese grater, pizza stone, car charger, power drill, wireless
        speaker, standing desk, folding table, rocking horse, sleeping bag, wooden spoon, leaf blower, memory card,
        video doorbell, smoke alarm, ceiling light, mirror, backpack, toaster, printer, blender, tripod, guitar,
        hammock, router, projector, dehumidifier, thermostat, ukulele, wheelbarrow, stapler, espresso machine, washing
        machine, ice cream maker, oak shelf, silk shirt, linen dress, rubber duck, copper wire, brass hook, tin opener,
        pearl necklace, red wagon, grey hoodie, pink slipper, mini fridge, accordion, aquarium, banjo, barometer,
        briefcase, bucket, calculator, cello, chandelier, clarinet, colander, corkscrew, dartboard, dumbbell, easel,
        freezer, frisbee, gazebo, globe, greenhouse, handbag, headset, jigsaw, juicer, kayak, keychain, kite, lantern,
        locket, mandolin, megaphone, microwave, necktie, notebook, oboe, ottoman, paddle, parka, pendant, pitcher,
        planter, poncho, pram, radiator, rucksack, sandal, saucepan, sled, snowboard, spatula, stethoscope, stroller,
        sundial, surfboard, tambourine, television, toboggan, treadmill, trombone, trumpet, tuxedo, typewriter,
        waistcoat, whisk, windbreaker, xylophone, bassoon reed, cashmere cardigan, chiffon veil, cobalt jug, corduroy
        blazer, crimson tunic, crystal goblet, emerald brooch, enamel pan, flannel nightgown, granite mortar, indigo
        kimono, ivory comb, lavender diffuser, mahogany bench, nylon rope, olive dish, paisley tie, plaid cap, porcelain
        doll, quartz clock, rattan chair, saffron robe, scarlet ribbon, suede bag, teak stool, titanium spoon, turquoise
        bead, violet lampshade, walnut desk, wicker lounger, zinc tub, badminton net, cricket bat, croquet mallet,
        baseball glove, basketball hoop, pasta maker, popcorn machine, noodle strainer, omelette pan, pancake griddle,
        muffin tin, gravy boat, butter dish, vinegar bottle, lemon squeezer, melon scoop, potato peeler, onion chopper,
        hamster cage, parrot perch, puppy crate, rabbit hutch, saddle, bicycle pump, motorcycle jacket, trailer hitch,
        roof box, engine gauge, dash cam, extension cord, surge protector, graphics card, webcam, chisel, welding mask,
        soldering kit, paint sprayer, staple gun, fence post, compost bin, watering can, sprinkler, towel rail, toilet
        seat, vanity mirror, makeup bag, perfume bottle, electric shaver, massage chair, crutch, bouncer, teddy bear,
        model airplane, marionette, balloon pump, gift box, fountain pen, bunny costume, blood pressure monitor, remote
        control car, queen bed frame, outdoor storage box, solar garden light, portable phone charger, stainless steel
        thermos, electric guitar amp, folding camp chair, inflatable hot tub, leather laptop bag, kids play tent,
        wireless gaming keyboard, round dining table, heated ski glove, antique clock, avocado spoon, badge reel, bakery
        rack, ballet slipper, barley sack, barrel tap, beaver hat, beetle trap, biscuit jar, blossom wreath, bronze
        statue, buffalo horn, burlap sack, cactus pot, caramel pan, cardboard crate, cedar chest, cherry pitter,
        chestnut roaster, chimney cap, cinnamon jar, citrus juicer, cloak, clover ring, coconut scraper, coral necklace,
        crochet hook, cypress bench, dragon kite, feather duster, fondue pot, fossil frame, fringe shawl, glitter lamp,
        goose feeder, graphite racket, hazel comb, hemp rope, jade pendant, jersey, lace veil, lobster cracker, lunar
        globe, lute, magenta scarf, magnet board, mango peeler, mint tin, mosaic tile, mustard pot, nautical lamp, neon
        sign, nickel tap, oatmeal scoop, orchid pot, oyster fork, padded bench, panda costume, pearl earring, pebble
        tile, pigeon cage, plaster mask, platinum ring, poppy wreath, prism, pumpkin carver, sapphire brooch, scented
        wax, slate clock, spruce wreath, squash racket, stencil kit, stereo amp, straw hat, tapestry, tartan skirt,
        tulip vase, vanilla syrup, vintage radio, waterproof bag, willow crate, yarn winder, zebra rug, dahlia bulb,
        duffel bag, ebony comb, lilac shirt, mohair shawl, pajama top, pewter mug, raffia hat, tassel, terracotta pot,
        tinsel garland
        """,
    "eval": """
        soap dispenser, cordless screwdriver, pet carrier, swivel armchair, gravel rake, cocktail shaker,
        garlic crusher, curling wand, sandwich grill, spice canister, tire inflator, changing pad, silver bracelet,
        maple bookcase, vinyl turntable, wading pool, bagel slicer, weather station, pocket compass, harmonica,
        bathrobe, toothbrush, snorkel, headlamp, nutcracker, scooter, puzzle, drone, fleece dressing gown,
        foldable luggage trunk
        """,
    "dev": """
        egg timer, shoe polish, camera strap, broom, candle holder, coat hanger, juice carafe, skateboard,
        velvet cushion, telescope, cookie sheet, wrist watch, fire pit, bunk mattress, nail brush, lawn mower,
        safety vest, flute, yellow raincoat, ceramic bowl, moving trolley, walking cane, waffle iron, hockey stick,
        tablet holder, bread knife, pillow set, patio parasol cover, soup ladle, violin bow, chess computer,
        salad spinner, roller blind, vacuum cleaner, bedside drawer, fishing rod, trampoline, pepper mill,
        ironing press, canvas print, soccer ball, air fryer, microphone, kettlebell, purple blanket, bamboo basket,
        marble coaster, cat tree, hedge trimmer, drum cymbal
        """,
}

# A frame without the order number gets one of TAGS before or after it.
FRAMES = {
    "train": {
        "delivery": """
            My {item} has still not arrived. | Order {order}: where is my {item}?
            It has been two weeks and no {item} has come.
            The tracking page for {order} has not moved in days. I am waiting for a {item}.
            hi, did my {item} ship yet? | The courier says {order} is delivered but there is no {item} at my door.
            I was told the {item} would be here last week. Nothing came.
            Parcel {order} is lost. It should hold a {item}. | Still waiting on the {item} from order {order}.
            #{order} never showed up. It was a {item}. | Can you tell me when the {item} gets here?
            No sign of the {item} I bought last month. | Order {order} is overdue. When will you deliver the {item}?
            {order} - {item} - not received. Please look into it.
            My neighbours got theirs, but my {item} ({order}) is still in transit.
            Your driver missed me again and I do not have the {item}. | The {item} should have been delivered long ago.
            I want to know where my {item} is. | Under {order} I bought a {item}, and it has not been shipped.
            The mailman never brought the {item}. | How long does delivery of the {item} take?
            The {item} was sent to my old address and I never got it.
            The package with my {item} is held at the depot and does not move.
            My {item} is late. Which day will it come? | I ordered a {item} in spring and it is still not here.
            Please check the shipment {order}. The {item} is missing from the box.
            The box for {order} was empty. There was no {item} inside. | Why is the {item} delayed so long?
            The {item} was due two weeks ago and I have no news of it.
            I stayed home all day but no one came with the {item}.
            Has order {order} left the warehouse? I am waiting for the {item}.
            My {item} is somewhere at the border and I hear nothing. | You delivered the {item} to the wrong house.
            Only half of {order} came. The {item} was not in it. | I have not received the {item}.
            The mail carrier lost my {item}. | I paid extra for fast shipping and still have no {item}.
            When can I expect the {item} from {order}?
            """,
        "broken": """
            The {item} from order {order} came with a crack in it. | My {item} stopped working after one day.
            Order {order}: the {item} is broken. | the {item} does not turn on
            I opened parcel {order} and the {item} was in pieces.
            The {item} makes a horrible noise and then shuts down. | A part of the {item} snapped off on first use.
            #{order}, {item}, arrived damaged. The box was crushed.
            There is a big scratch and a dent on my new {item}.
            Bought a {item} from you ({order}) and it is already falling apart.
            The {item} I got in order {order} is torn. | Something is wrong with the {item}, it smells burnt.
            {order} - the {item} is defective and I would like a repair.
            My {item} was fine for a week, now it is broken. | Half of the screws for the {item} are bent.
            The seam of the {item} split open the first evening. | My {item} has a broken edge.
            The {item} I got under {order} has a missing part. | The {item} fell apart in my hands.
            My new {item} is faulty and will not start. | There is a rip in the {item} you sent me.
            The handle of the {item} broke. I bought it under {order}.
            The {item} in package {order} was badly damaged. | The {item} came out of the box bent and rusty.
            The {item} does not work, it stopped on the first day. | I unwrapped the {item} and found it shattered.
            My {item} died the second time I used it. | The {item} from {order} is damaged, can you replace it?
            One side of the {item} has come loose. | The {item} that you sent is not working.
            I am sorry to report that my {item} cracked.
            Order {order} was a {item}, and it is useless because it broke.
            The paint on the {item} is peeling and the base is split. | It came quickly, but the {item} is defective.
            The lid of the {item} is dented. | My {item} got a hole after one wash.
            The {item} is ruined. It was wet inside the box. | I cannot get the {item} to work. I believe it is faulty.
            """,
        "payment": """
            I was charged twice for the {item}. | Order {order}: I paid too much for the {item}.
            I sent the {item} back and still have no refund. | The discount code was not applied to my {item}.
            please send an invoice for the {item} | My card shows two payments for {order}. I bought one {item}.
            The price of the {item} on my bill is not the one on the site. | When do I get my money back for the {item}?
            #{order}: you took the money for the {item} from the wrong card. | I need a receipt for the {item} I bought.
            Why is there an extra fee on {order}? The {item} was meant to ship free.
            The refund for my {item} is ten dollars short. | {order} - {item} - payment went through twice.
            Your bank transfer for the returned {item} never reached me.
            The gift card was not used when I paid for the {item}. | I do not understand the tax on my {item}.
            You billed me for two {item} orders, but I only made {order}.
            The full price was charged for my {item}. It was on sale. | I returned the {item} and want my money.
            Under {order} my account was debited twice for the {item}. | Can I pay for the {item} in two parts?
            I cannot find the bill for my {item}. | The amount you charged for the {item} is wrong.
            You charged my credit card for a {item} that I paid in cash.
            The invoice for {order} has the wrong name. It is for a {item}.
            My payment for the {item} was declined, but the money is gone.
            I have waited weeks for the refund of my {item}.
            The shop price of the {item} was lower than what I paid under {order}.
            The sale price of the {item} is missing from my invoice. | Please refund the shipping fee for the {item}.
            The voucher did not work, so I overpaid for the {item}.
            Is the payment for the {item} through? I see it pending on {order}.
            You still have my money for the {item} I gave back.
            There is a charge on my card that I do not know. It says {item}, {order}.
            I was billed the wrong amount for order {order}, a {item}. | Which card did I pay the {item} with?
            My bank sees a second charge for the {item}. | The receipt for {order} does not list the {item} price.
            """,
        "cancel": """
            Please cancel order {order}. I do not want the {item} any more. | I want to cancel my {item}.
            Order {order}: do not ship the {item}, I changed my mind. | cancel {order} please, i found a cheaper {item}
            I bought the {item} in error. Can you stop order {order}? | Can I still call off the {item}?
            We no longer need the {item}, so please cancel it. | #{order}: kindly cancel the {item} before it goes out.
            My son ordered a {item} without asking me. Please undo {order}.
            Take the {item} off my list, I will not be needing it. | Is it too late to cancel a {item}?
            I clicked too fast. Please withdraw the {item}. | {order} - {item} - please cancel.
            Someone gave me a {item} as a gift, so cancel my order {order}.
            I would like to end my order for the {item} before it ships.
            Please stop the {item}, we are leaving the country.
            I changed my mind about the {item}. Cancel {order} please.
            Under {order} I ordered a {item} that I do not need now. | Would you cancel the {item}?
            The {item} is not wanted any longer, please stop order {order}.
            I own a fine {item} already, so cancel order {order}. | Do not send me the {item}. I am cancelling {order}.
            I picked the wrong {item}. Cancel it before you pack it.
            My plans changed and I have no use for the {item}. Please call off {order}.
            Kindly remove the {item} and close order {order}. | We decided against the {item}. Please cancel.
            I ordered the {item} twice by mistake, so drop {order}.
            Please do not process {order}. The {item} is the wrong size for us. | How do I cancel the {item}?
            A friend is lending me an older {item}, so I do not need {order} now.
            I found a better {item} in a shop. Please cancel {order}. | Please scrap my order of a {item}.
            The {item} was ordered by accident, cancel it please. | Cancel the {item}, please.
            I have to cancel {order}, the {item}, because I lost my job.
            Please withdraw {order}. A {item} is too big for our house. | I no longer wish to buy the {item}.
            Forget the {item}, I do not want it. Please stop {order}.
            """,
    },
    "eval": {
        "delivery": """
            I have been looking out for my {item} since Saturday, and it is not here.
            The {item} has not reached me. Could you find out where it is?
            Your app says out for delivery, yet the {item} has not come.
            When is the {item} from order {order} going to arrive?
            Six days ago you shipped {order}, but I have no {item}.
            Did the post lose parcel {order}? My {item} never came.
            """,
        "broken": """
            This morning my {item} broke. | The {item} got damaged on its way to me.
            I have a problem: the {item} from {order} is not working any more.
            When I took the {item} out of the box it was cracked. | You sent me a defective {item}. Please replace it.
            I used the {item} from order {order} once and it fell to pieces.
            """,
        "payment": """
            I think you charged me two times for one {item}.
            Please give me my money back for the {item} that I returned.
            The invoice for my {item} shows the wrong price.
            Where can I get a receipt for order {order}? I bought a {item}.
            I paid for order {order}, a {item}, and you took too much from my card.
            My refund for the {item} has not come through.
            """,
        "cancel": """
            Sorry, I do not need the {item} now. Cancel it, please.
            May I cancel order {order}? I do not want a {item}. | Please cancel the {item} that I bought yesterday.
            My brother has bought me a {item}, so you can cancel {order}.
            I ordered the wrong {item}, so please cancel order {order}.
            I decided not to buy the {item}. Please stop my order.
            """,
    },
    "dev": {
        "delivery": """
            Any news on the {item}? It was due to arrive in May. Transaction {order}.
            I keep checking the mailbox, but the {item} from {order} has not come.
            Your site says {order} is on its way since May. I want to know where the {item} is.
            Delivery of my {item} is taking forever, transaction {order}.
            The van drove past my house and I did not get the {item}. Transaction {order}.
            A {item} was promised to me last month and it never arrived. Purchase {order}.
            Has the {item} been shipped? I have {order} on my receipt.
            Hello, parcel {order} is stuck at customs and I am waiting for my {item}.
            Nobody has delivered the {item} so far, purchase {order}.
            Delivery of {order} is very late. I wonder where the {item} is.
            I paid for express shipping, yet the {item} is not here. Purchase {order}.
            """,
        "broken": """
            One leg of the {item} fell off. Transaction {order}. | Under {order} I got a {item} that will not start.
            Hey there, the {item} has a hole in it. I have {order} on the slip.
            Just unwrapped {order} and, sadly, the {item} is cracked.
            The {item} died after two uses. See transaction {order}.
            After ten minutes my {item} stopped working, see purchase {order}.
            Sad to say that the {item} was smashed when I unpacked {order}.
            One corner of the {item} is chipped and cracked. You will find it under {order}.
            I cannot use this {item} at all: it is faulty. Purchase {order}.
            The {item} was damaged inside its box. I have {order} on my receipt.
            A button on the {item} came off and it does not work now, purchase {order}.
            """,
        "payment": """
            There are two charges for one {item} on my account. Transaction {order}.
            Under {order} you billed the {item} at full price.
            The refund for the {item} I returned is not on my account. See {order}.
            Could you send me the bill for {order}? I have to claim the {item} at work.
            The coupon for my {item} did not lower the total. Transaction {order}.
            My bank statement shows three charges for the {item}. Purchase {order}.
            You owe me a refund for a {item}, see {order}.
            The price you charged me for the {item} is too high, purchase {order}.
            Could you correct the invoice for purchase {order}? The {item} was on sale.
            Where is the refund for the {item} that I sent back? Purchase {order}.
            I was billed for shipping on top of the {item}, but {order} had free postage.
            """,
        "cancel": """
            The {item} is no longer wanted. Would you cancel transaction {order}?
            I made an error with {order}: cancel it, I have a {item} at home.
            Please drop the {item} from my orders, see {order}.
            Stop transaction {order} if you can. The {item} will not fit in my flat.
            My sister bought the same {item}, so I want to cancel transaction {order}.
            Kindly call off purchase {order}, the {item} is not needed now.
            I have second thoughts about the {item}; please cancel it. See {order}.
            Good morning, could you cancel {order}? My wife already has a {item}.
            Please do not ship the {item}. I wish to cancel purchase {order}.
            I ordered one {item} too many, so cancel purchase {order}.
            We found a nicer {item} elsewhere. Please withdraw purchase {order}.
            """,
    },
}

TAGS = {
    "train": """
        Order {order}. | Order no. {order}. | Order #{order}. | Order number {order}. | Ref {order}. | See {order}.
        It is order {order}. | Number {order}. | Booking {order}. | Receipt {order}.
        """,
    "eval": "My order is {order}. | This is about order {order}. | Order ID {order}.",
    "dev": "Purchase {order}. | Transaction {order}.",
}

DATES = {
    "train": """
        Monday, Friday, Sunday, Monday morning, Friday night, Good Friday, January, February, June, July, September,
        November, December, Christmas, Christmas Eve, New Year, Ramadan, Diwali, Hanukkah, Passover, Labor Day,
        Mother's Day, Valentine's Day, Independence Day, Memorial Day, Boxing Day, Carnival, Pentecost, noon, tonight,
        tomorrow, tomorrow morning, today, this afternoon, next week, next month, autumn, winter, summer, lunchtime,
        teatime, bedtime, 5 pm, 8 am, 3 pm, 10 am, June 4, July 15, November 21, the 20th, 12 December, the weekend,
        end of day, end of June
        """,
    "eval": "Wednesday, October, Thanksgiving, breakfast, this evening, 2 pm, April 6",
    "dev": "Tuesday, Saturday, March, sunrise, Halloween, Thursday, Easter, midnight, August, dinner",
}

DEADLINES = {
    "train": """
        I need it by {by}. | Please reply by {by}. | It has to be solved by {by}. | Can you fix this by {by}?
        By {by} at the latest, please. | I must hear from you by {by}. | We need this done by {by}.
        Let me know by {by}. | Kindly answer by {by}. | Please get back to me by {by}. | This is urgent, act by {by}.
        I expect a reply by {by}. | Please sort it out by {by}. | Is that possible by {by}? | Tell me more by {by}.
        Help me by {by}, please. | Can I have an answer by {by}? | By {by} please. | Handle this by {by}, thanks.
        """,
    "eval": "Please take care of this by {by}. | Could you let me know by {by}? | I want a reply by {by}.",
    "dev": """
        Do settle this by {by}. | Please write back by {by}. | I want this finished by {by}. | Call me by {by}, please.
        I would like to have it sorted by {by}. | I am hoping for an answer by {by}.
        """,
}

CLOSINGS = {
    "train": """
        No rush. | Thanks. | Whenever you have time. | Thank you and have a nice day. | There is no hurry.
        Please help. | Any day is fine. | Best wishes. | It can wait. | Just letting you know.
        Take your time. | I am quite upset. | Sorry for the trouble. | Hello. | I am not happy. | Good day.
        """,
    "eval": "Thank you very much. | It is not urgent. | Please look into it soon.",
    "dev": """
        Cheers. | I am not in a hurry. | Answer when it suits you. | Many thanks. | It is not pressing.
        I expect better from you.
        """,
}


@dataclass(frozen=True)
class Row:
    """One message with the parts that it was made from."""

    message: str
    type: str
    item: str
    order: str
    by: str | None
    frame: str
    tag: str
    cue: str

    def record(self) -> str:
        """Return the answer: a YAML record, keys in a fixed order."""
        fields = {"type": self.type, "item": self.item, "order": self.order, "by": self.by}
        return "\n".join(f"{key}: {'null' if value is None else value}" for key, value in fields.items())

    def line(self) -> str:
        """Return the row as a line of a chat file."""
        turns = (("system", SYSTEM), ("user", self.message), ("assistant", self.record()))
        return json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]})


def split_list(text: str, mark: str) -> list[str]:
    """Return the non-empty pieces of a table above, with single spaces."""
    return [" ".join(piece.split()) for piece in re.split(mark, text) if piece.strip()]


def shuffled(pool: Iterable[str], count: int, rng: random.Random) -> list[str]:
    """Draw `count` members in random order, each about equally often."""
    members = list(pool)
    drawn: list[str] = []
    while len(drawn) < count:
        drawn += rng.sample(members, len(members))
    return drawn[:count]


def make(split: str, orders: list[str], rng: random.Random) -> list[Row]:
    """Make the rows of one split."""
    count = len(orders)
    frames = {frame: kind for kind, text in FRAMES[split].items() for frame in split_list(text, MARK)}
    tags, deadlines, closings = (split_list(text[split], MARK) for text in (TAGS, DEADLINES, CLOSINGS))
    chosen = shuffled(frames, count, rng)
    items = shuffled(split_list(ITEMS[split], r",\s"), count, rng)
    dates = shuffled(split_list(DATES[split], r",\s"), count, rng)
    rows = []
    for frame, item, order, date in zip(chosen, items, orders, dates, strict=True):
        by = date if rng.random() < 0.5 else None
        tag = "" if "{order}" in frame else rng.choice(tags)
        cue = rng.choice(deadlines) if by else rng.choice([*closings, *[""] * 2 * len(closings)])
        parts = [tag, frame] if rng.random() < 0.3 else [frame, tag]
        parts = [cue, *parts] if rng.random() < 0.3 else [*parts, cue]
        parts = [part for part in parts if part]
        text = " ".join(part if part[-1] in ".!?" or part == parts[-1] else part + "." for part in parts)
        message = re.sub(r"\b([Aa]) (?=[aeio]|u(?!k))", r"\1n ", text.format(item=item, order=order, by=by))
        rows.append(Row(message, frames[frame], item, order, by, frame, tag, cue))
    return rows


def check(train: list[Row], held_out: list[Row]) -> None:
    """Stop unless the two splits share no value and no wording."""

    def values(rows: list[Row], field: str) -> set[str]:
        return {value for row in rows if (value := getattr(row, field))}

    def words(rows: list[Row]) -> set[str]:
        return {word for item in values(rows, "item") for word in item.split()}

    shared = words(train) & words(held_out)
    for field in ("message", "frame", "tag", "cue", "item", "order", "by"):
        shared |= values(train, field) & values(held_out, field)
    text = "\n".join(row.message for row in train)
    for field in ("item", "order", "by"):
        shared |= {value for value in values(held_out, field) if re.search(rf"\b{value}\b", text, re.IGNORECASE)}
    if shared:
        raise SystemExit(f"the held-out rows share with the training rows: {sorted(shared)}")
    for row in (*train, *held_out):
        if any(value and value not in row.message for value in (row.item, row.order, row.by)):
            raise SystemExit(f"a field is not in its message: {row}")


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description="Write the support triage rows of the quickstart.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "support_triage", help="folder to write to")
    parser.add_argument("--dev", action="store_true", help="write dev.jsonl as well")
    args = parser.parse_args()

    rng = random.Random(SEED)  # noqa: S311 - the same files every time are the purpose
    numbers = [str(number) for number in rng.sample(range(10000, 100000), sum(SIZES.values()))]
    splits = {}
    for position, (split, size) in enumerate(SIZES.items()):
        orders, numbers = numbers[:size], numbers[size:]
        splits[split] = make(split, orders, random.Random(SEED + position))  # noqa: S311
    for one, other in (("train", "eval"), ("train", "dev"), ("dev", "eval")):
        check(splits[one], splits[other])

    args.out.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        if split != "dev" or args.dev:
            path = args.out / f"{split}.jsonl"
            path.write_text("".join(row.line() + "\n" for row in rows), encoding="utf-8")
            print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    main()
