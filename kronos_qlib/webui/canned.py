"""TEMPORARY canned answers for work on the page; deleted once the service is real."""
from __future__ import annotations
import math, random
from datetime import date, timedelta

def days(n, start=date(2024,1,2)):
    out=[]; d=start
    while len(out)<n:
        if d.weekday()<5: out.append(d.isoformat())
        d+=timedelta(days=1)
    return out

def forecast(fid="0"*20, horizon=10, instrument="SH600000", realised=True):
    rnd=random.Random(1); all_days=days(200+horizon); price=10.0; hist=[]
    for d in all_days:
        o=price; price*=math.exp(rnd.gauss(0,.015)); h=max(o,price)*1.005; l=min(o,price)*.995
        v=rnd.uniform(1e6,3e6)
        hist.append(dict(timestamp=d,open=o,high=h,low=l,close=price,volume=v,amount=v*price))
    seen=hist[:200]; last=seen[-1]["close"]; z={"0.05":-1.64,"0.1":-1.28,"0.25":-.67,"0.5":0,"0.75":.67,"0.9":1.28,"0.95":1.64}
    q={c:{k:[(seen[-1][c])*math.exp(zz*.015*math.sqrt(i+1)) for i in range(horizon)] for k,zz in z.items()} for c in ("open","high","low","close","volume","amount")}
    sc=lambda c:{"0.5":.48*c,"0.8":.79*c,"0.9":.89*c}
    scores=[dict(method="kronos",crps=.0101,coverage=sc(1)),dict(method="last_price",crps=.0142,coverage=None),dict(method="historical_volatility",crps=.0105,coverage=sc(1.05))]
    return dict(id=fid,created="2026-11-26T17:40:00Z",instrument=instrument,source="bars",source_name="bars given",is_intraday=False,rule="the weekdays of the bars",
      settings=dict(horizon=horizon,paths=100,lookback=90,temperature=1.0,top_p=1.0,top_k=0,seed=0,calibration="auto",checkpoint="nano",exchange=None,freq=None),
      checkpoint=dict(name="nano",revision=None,digest="1f0c2a9b"),calibrated=True,calibration="calibrated on 30 instruments, until 2021-12-31",anchored=True,
      notes=["volume is missing: set to 0"],bars_digest="ab"*32,bars_seen=90,last_timestamp=seen[-1]["timestamp"],last_close=last,
      timestamps=all_days[200:],quantiles=q,mean={c:v["0.5"] for c,v in q.items()},paths=[[last*math.exp(rnd.gauss(0,.015)*math.sqrt(i+1)) for i in range(horizon)] for _ in range(10)],
      prob_up=[.52]*horizon,outlook=dict(expected_return=.004,prob_up=.52,volatility=.0148,shortfall_5=-.083),history=seen,
      realised=hist[200:] if realised else None,track_record=dict(this_window=scores if realised else None,this_window_reason=None if realised else "the bars to come are not known yet",
      past=dict(windows=20,first=all_days[0],last=all_days[190],scores=scores,by_window=[dict(date=all_days[i*10],crps=dict(kronos=.01+rnd.random()*.01,last_price=.012+rnd.random()*.01,historical_volatility=.0102+rnd.random()*.01)) for i in range(20)],better_than=dict(last_price=.7,historical_volatility=.55)),past_reason=None),kept=True)

PAIR=dict(one="kronos",other="lightgbm",difference=.004,low=-.003,high=.011,p_value=.27,reason=None)
def answers():
    f=forecast(); ds=days(120)
    curve=lambda s:[math.exp(.0004*i+.02*math.sin(i/9+s)) for i in range(120)]
    return {
     "models":dict(models=[dict(name="nano",kind="bundled",parameters=1200000,max_context=100,revision=None,state="loaded",device="cpu",problem=None),dict(name="small",kind="hub",parameters=24700000,max_context=512,revision="901c26c1",state="to fetch",device=None,problem=None)],default="nano"),
     "instruments":dict(folder="market",freq="day",first="2015-01-05",last="2024-06-28",total=2,instruments=["SH600000","SH600519"]),
     "kept":dict(forecasts=[dict(id=f["id"],created=f["created"],instrument=f["instrument"],source="qlib",source_name="market",checkpoint="nano",calibrated=True,last_timestamp=f["last_timestamp"],last_close=f["last_close"],until=f["timestamps"][-1],horizon=10,paths=100,expected_return=.004,realised=10,crps=.0101)],total=1,unreadable=[]),
     "calibration":dict(forecasts=12,bars=110,by_horizon=[dict(bar=i,forecasts=12-i//3,coverage={"0.5":.5,"0.8":.79,"0.9":.88},crps=.004*math.sqrt(i)) for i in range(1,11)],pit=[10,12,9,11,13,10,12,11,10,12],reason=None),
     "universe":dict(run="kronos",run_id="1f0c2a9b"*4,day="2024-06-28",fresh=False,days=days(60),rows=[dict(rank=i+1,instrument=f"SH60{i:04d}",score=.02-.001*i,percentile=random.random(),sparkline=[.01*math.sin(j/5+i) for j in range(60)],expected_return=.01-.0005*i,prob_up=.55-.003*i,volatility=.02,shortfall_5=-.06,last_bar="2024-06-28",age_days=0) for i in range(40)],notes=["3 names have no bar of 2024-06-28 and no score"]),
     "why":dict(run="kronos",run_id="1f0c2a9b"*4,instrument="SH600000",day="2024-06-28",method="SHAP values of LightGBM",score=.02,contributions=[dict(feature="KLEN",value=.02,contribution=.004,left_out=-.0035),dict(feature="ROC5",value=1.01,contribution=-.002,left_out=.0018)],words=["KLEN raises its score most"]),
     "runs":dict(runs=[dict(run_id="1f0c2a9b"*4,experiment="kronos",name="kronos",model="KronosModel",finished="2026-11-26T10:00:00Z",metrics=dict(ic=.03,icir=.3,rank_ic=.028,rank_ic_t=3.1,excess_return=.08,excess_low=-.02,excess_high=.18,information_ratio=1.1,sharpe=.9,max_drawdown=-.12,turnover=.1)),dict(run_id="2f0c2a9b"*4,experiment="lightgbm",name="lightgbm",model="LGBModel",finished="2026-11-26T10:10:00Z",metrics=dict(ic=.02,icir=.2,rank_ic=.02,rank_ic_t=2.1,excess_return=None,excess_low=None,excess_high=None,information_ratio=None,sharpe=None,max_drawdown=None,turnover=None))],measures=dict(ic="IC",icir="ICIR",rank_ic="Rank IC",rank_ic_t="t of the Rank IC",excess_return="Excess return a year",information_ratio="Information ratio",sharpe="Sharpe ratio",max_drawdown="Largest drawdown",turnover="Turnover a day"),reason=None),
     "compare":dict(rows=[dict(run="kronos",measures=dict(ic=.03,rank_ic=.028),rank_ic_low=.01,rank_ic_high=.046),dict(run="lightgbm",measures=dict(ic=.02,rank_ic=.02),rank_ic_low=.001,rank_ic_high=.04)],measures=dict(ic="IC",rank_ic="Rank IC"),equity=dict(days=ds,curves=[dict(name=n,values=curve(s)) for s,n in enumerate(("kronos","lightgbm","benchmark"))]),drawdown=dict(days=ds,curves=[dict(name=n,values=[-.02*abs(math.sin(i/9+s)) for i in range(120)]) for s,n in enumerate(("kronos","lightgbm"))]),rank_ic=dict(days=ds,curves=[dict(name=n,values=[.02*math.sin(i/20+s) for i in range(120)]) for s,n in enumerate(("kronos","lightgbm"))]),rolling_days=20,deciles=dict(days=[str(i) for i in range(1,11)],curves=[dict(name=n,values=[-.002+.0004*i for i in range(10)]) for n in ("kronos","lightgbm")]),decay=dict(days=[str(i) for i in range(0,11)],curves=[dict(name=n,values=[.03-.002*i for i in range(11)]) for n in ("kronos","lightgbm")]),correlation=[[1,.4],[.4,1]],signal_tests=[PAIR],return_tests=[PAIR],blends=[dict(members=["kronos","lightgbm"],rank_ic=.035,test=PAIR)],notes=["Backtests differ in days, 120 are common."]),
    }
