"""The names that vendors give to the columns of bars, and how spellings are made equal."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

from kronos_qlib.schema import PRICE_COLUMNS

TIME = "time"
"""What a mapping calls the column with the time of day, beside the date."""

DAY_NAMES = (
    *("date", "trade_date", "trading_date", "trading_day", "trade_dt", "trddt", "dtyyyymmdd"),
    *("日期", "交易日期", "交易日"),
)
CLOCK_NAMES = ("time", "trade_time", "trading_time", "时间", "交易时间")
"""A column of each make one time: the day, and the time of day or the whole time."""

ALIASES: Mapping[str, tuple[str, ...]] = {
    "date": (
        *DAY_NAMES,
        *CLOCK_NAMES,
        *("datetime", "date_time", "timestamp", "timestamps", "open_time", "time_key", "bar_time"),
        *("window_start", "gmt_time", "local_time", "日期时间"),
    ),
    "symbol": (
        *("symbol", "instrument", "code", "ticker", "ts_code"),
        *("代码", "股票代码", "证券代码"),
    ),
    "open": ("open", "open_price", "price_open", "opnprc", "s_dq_open", "开盘", "开盘价"),
    "high": (
        *("high", "high_price", "highest_price", "price_high", "hiprc", "s_dq_high"),
        *("最高", "最高价"),
    ),
    "low": (
        *("low", "low_price", "lowest_price", "price_low", "loprc", "s_dq_low"),
        *("最低", "最低价"),
    ),
    "close": ("close", "close_price", "price_close", "clsprc", "s_dq_close", "收盘", "收盘价"),
    "volume": (
        *("volume", "vol", "volume_from", "base_volume", "real_volume", "turnover_vol"),
        *("shares_traded", "no_of_shares", "total_traded_quantity", "tottrdqty", "ttl_trd_qnty"),
        *("dnshrtrd", "s_dq_volume", "成交量", "总成交量", "成交股数", "总手"),
        *("volumen", "出来高", "거래량"),
    ),
    "amount": (
        *("amount", "amt", "money", "volume_to", "quote_volume", "quote_asset_volume"),
        *("total_turnover", "turnover_value", "traded_value", "total_traded_value", "tottrdval"),
        *("dnvaltrd", "s_dq_amount"),
        *("成交额", "成交金额", "总成交额", "成交总额", "金额"),
    ),
    "factor": ("factor", "复权因子"),
}
"""Names that are recognised, in any case and with any marks between their words.
"turnover" is missing on purpose: some vendors mean money by it, others a rate."""

FALLBACKS: Mapping[str, tuple[str, ...]] = {
    "date": (
        *("unix", "unix_timestamp", "unix_time", "epoch", "dt", "t", "ts"),
        *("start_time", "close_time", "snapped_at", "datum"),
    ),
    "symbol": (
        *("tic", "stock_code", "stock_id", "sec_code", "sec_id", "secu_code", "security_code"),
        *("security_id", "order_book_id", "windcode", "wind_code", "vt_symbol", "instrument_id"),
        *("inst_id", "asset_id", "contract_code", "stkcd", "s_info_windcode", "thscode"),
        *("htsc_code", "ric", "isin", "cusip", "permno", "gvkey", "symbols", "tickers"),
        *(
            "tickersymbol",
            "symbol_name",
            "合约代码",
            "基金代码",
            "指数代码",
            "债券代码",
            "品种代码",
        ),
        "标的代码",
    ),
    "open": ("o",),
    "high": ("h",),
    "low": ("l",),
    "close": ("c", "price", "last", "close_last", "last_price"),
    "volume": ("tick_volume", "tickvol", "tick_vol", "v"),
    "amount": (),
    "factor": (),
}
"""Names that count where a table has none of `ALIASES`."""

LAST_RESORT = (
    *("name", "stock", "stock_name", "asset", "contract", "pair", "coin", "crypto", "security"),
    *(
        "sid",
        "合约",
        "品种",
        "股票",
        "股票名称",
        "证券名称",
        "证券简称",
        "股票简称",
        "名称",
        "简称",
    ),
)
"""The symbol where a table has no other and these differ from row to row."""


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


QUOTES = _set(
    "usd usdt usdc busd tusd fdusd dai eur gbp jpy krw cny rmb cnh hkd inr try brl rub aud cad chf "
    "sgd twd quote currency counter ccy cash money value dollar dollars fiat to 元"
)
"""What volume in money is counted in, when a name says "Volume USDT"."""
BASES = _set("base coin from")
COINS = _set("btc xbt eth ltc xrp bch bnb sol doge ada dot trx link avax matic uni etc eos xlm")
"""What "Volume BTC" counts where no symbol and no second column say so."""
NOISE = _set(
    "total trade trades traded trading daily day 24h share shares stock in of the asset sum all "
    "market exchange spot"
)
"""Words of a name that leave it volume."""
PARTS = _set(
    "buy sell taker maker bid ask up down ma ema sma wma avg average mean median rel relative "
    "ratio "
    "rate chg change pct percent prev previous last std weighted price vwap delta number count "
    "num no cap"
)
"""Words of a name that make it a part of the volume, or no volume."""

STATES = _set(
    "yes no y n true false t f on off up down buy sell hold long short flat open closed trading "
    "halt suspended normal train valid test am pm night bull bear 是 否 停牌 正常 交易 上涨 下跌"
)


@lru_cache(maxsize=1024)  # a thousand frames have the same names
def compact(name: str) -> str:
    """A name without case, marks and what cannot be seen: "<Adj. Close>" is "adjclose"."""
    return "".join(words(name))


def words(name: str) -> list[str]:
    """A name's words in small letters: "1. Volume_(BTC)" is volume and btc."""
    plain = unicodedata.normalize("NFKC", name)
    plain = "".join(mark for mark in plain if unicodedata.category(mark) != "Cf").strip().lower()
    plain = re.sub(r"^\d+[ab]?\. +", "", plain)  # Alpha Vantage numbers its columns
    return [word for word in re.split(r"[\W_]+", plain) if word]


def split_unit(name: str) -> tuple[str, str]:
    """A name and the unit in brackets after it: 成交额(万元) is 成交额 and 万元."""
    plain = unicodedata.normalize("NFKC", name).strip()
    match = re.fullmatch(r"([^(\[]+?)[\s_]*[(\[]([^)\]]+)[)\]]", plain)
    return (match[1], match[2].strip().lower()) if match else (plain, "")


COMPACT = {ours: frozenset(map(compact, names)) for ours, names in ALIASES.items()}
COMPACT_FALLBACKS = {ours: frozenset(map(compact, names)) for ours, names in FALLBACKS.items()}
COMPACT_NAMES = frozenset(map(compact, LAST_RESORT))
COMPACT_DAYS = frozenset(map(compact, DAY_NAMES))
COMPACT_CLOCKS = frozenset(map(compact, CLOCK_NAMES))


def find_named(ours: str, free: Sequence[str], taken: Collection[str]) -> list[str]:
    """The columns with a known name, of the best kind that there is; what is taken is left out."""
    plain = {name: compact(name) for name in free if name not in taken}
    near = [name for name, key in plain.items() if key in COMPACT[ours]]
    if not near and ours in PRICE_COLUMNS:
        near = [
            name
            for name in plain
            if compact(split_unit(name)[0]) in COMPACT[ours] and "%" not in split_unit(name)[1]
        ]
    if near:
        return near
    near = [name for name, key in plain.items() if key in COMPACT_FALLBACKS[ours]]
    if ours in PRICE_COLUMNS or ours in ("volume", "date"):
        short = {key for key in plain.values() if len(key) == 1}
        # One letter is a name only among its like.
        near = [n for n in near if len(plain[n]) > 1 or {"o", "h", "l", "c"} <= short | set(taken)]
    return near
