"""Sentences of a dozen scripts, and speech written down without a mark."""

from __future__ import annotations

import random

SENTENCES = {
    "hindi": ["बंदरगाह मंगलवार को फिर से खुल गया।", "मरम्मत में नौ सप्ताह लगे।", "नगर ने बारह हज़ार दिए।"],
    "sanskrit": ["धर्मक्षेत्रे कुरुक्षेत्रे समवेता युयुत्सवः॥", "मामकाः पाण्डवाश्चैव किमकुर्वत सञ्जय॥"],
    "bengali": ["বন্দরটি মঙ্গলবার আবার খুলেছে।", "মেরামতে নয় সপ্তাহ লেগেছে।"],
    "urdu": ["بندرگاہ منگل کو دوبارہ کھل گئی۔", "مرمت میں نو ہفتے لگے۔", "کیا جہاز آئے؟"],
    "arabic": ["افتتح الميناء يوم الثلاثاء.", "هل وصلت السفن؟", "نعم، وصلت كلها."],
    "armenian": ["Նավահանգիստը բացվեց երեքշաբթի օրը։", "Վերանորոգումը տևեց ինը շաբաթ։"],
    "amharic": ["ወደቡ ማክሰኞ እንደገና ተከፈተ።", "ጥገናው ዘጠኝ ሳምንት ወሰደ።"],
    "burmese": ["ဆိပ်ကမ်းသည် အင်္ဂါနေ့တွင် ပြန်ဖွင့်ခဲ့သည်။", "ပြုပြင်ရန် ကိုးပတ်ကြာသည်။"],
    "khmer": ["កំពង់ផែបានបើកឡើងវិញនៅថ្ងៃអង្គារ។", "ការជួសជុលចំណាយពេលប្រាំបួនសប្តាហ៍។"],
    "chinese": ["港口星期二重新开放。", "修理用了九个星期！", "渔船回来了吗？"],
    "japanese": ["港は火曜日に再開した。", "「もう遅い。」", "修理に九週間かかった。"],
    "thai": [
        "ท่าเรือเปิดอีกครั้งในวันอังคารหลังจากซ่อมแซมเก้าสัปดาห์",
        "เมืองจ่ายเงินหนึ่งหมื่นสองพันคราวน์สำหรับหินใหม่",
        "ชาวประมงสามารถขนปลาขึ้นฝั่งข้างปั้นจั่นเก่าได้",
    ],
    "english": ['He said "we go." ', "J. Smith went.", "Then?", "Nothing came (not a ship!)", "The end…"],
}  # fmt: skip


HEARD = (
    "and", "then", "we", "went", "to", "the", "harbour", "because", "nobody", "knew", "where", "the",
    "boats", "had", "gone",
)  # fmt: skip


def transcript(words: int) -> str:
    """Speech as a machine writes it down: not a mark in it."""
    rng = random.Random(words)
    return " ".join(rng.choice(HEARD) for _ in range(words))
