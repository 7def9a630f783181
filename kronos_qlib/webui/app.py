"""Routes (canned for now)."""
from __future__ import annotations
import time
from flask import Flask, jsonify, render_template, request, Response
from kronos_qlib.webui import canned

def make_app() -> Flask:
    app = Flask(__name__)
    A = canned.answers()
    jobs = {}
    def static(name): return f"/static/{name}"
    app.jinja_env.globals["static"] = static
    app.jinja_env.globals["plotly"] = "/plotly.min.js"
    def html(): return request.accept_mimetypes.best_match(["application/json","text/html"], default="application/json") == "text/html"
    def page(name, **kw): return render_template(name, **kw)
    @app.get("/")
    def index(): return page("forecast.html")
    @app.get("/plotly.min.js")
    def plotly_js():
        from plotly.offline import get_plotlyjs
        return Response(get_plotlyjs(), mimetype="text/javascript", headers={"Cache-Control": "max-age=31536000"})
    @app.get("/universe")
    def universe(): return page("universe.html") if html() else jsonify(A["universe"])
    @app.get("/runs")
    def runs(): return page("runs.html") if html() else jsonify(A["runs"])
    @app.get("/kept")
    def kept(): return page("kept.html")
    @app.get("/kept/<fid>")
    def kept_one(fid): return page("kept_forecast.html", forecast_id=fid)
    @app.post("/predict")
    def predict():
        body = request.get_json(silent=True) or request.form
        if str(body.get("horizon")) == "99":
            return Response('{"type":"about:blank","title":"Unprocessable Content","status":422,"detail":"horizon must be at most 512, got 99","field":"horizon"}', 422, mimetype="application/problem+json")
        if float(body.get("wait", 2)) == 0:
            jobs["1"*20] = time.time()
            return jsonify(job_of("1"*20)), 202
        return jsonify(canned.forecast(horizon=int(body.get("horizon", 10))))
    def job_of(j):
        if jobs[j] is None: state, p = "cancelled", .4
        else:
            p = min(1, (time.time()-jobs[j])/5); state = "done" if p >= 1 else "running"
        return dict(job=j, kind="forecast", label="SH600000", state=state, progress=p, eta=5*(1-p), position=None, status_url=f"/jobs/{j}", result_url=f"/forecasts/{'0'*20}" if state=="done" else None, result="0"*20 if state=="done" else None, error=None)
    @app.get("/jobs/<j>")
    def job(j): return jsonify(job_of(j))
    @app.delete("/jobs/<j>")
    def cancel(j): jobs[j] = None; return jsonify(job_of(j))
    @app.get("/models")
    def models(): return jsonify(A["models"])
    @app.post("/models/load")
    def load(): jobs["1"*20] = time.time(); return jsonify(job_of("1"*20)), 202
    @app.get("/instruments")
    def instruments(): return jsonify(A["instruments"])
    @app.get("/forecasts")
    def forecasts(): return jsonify(A["kept"])
    @app.get("/forecasts/calibration")
    def calibration(): return jsonify(A["calibration"])
    @app.get("/forecasts/<fid>")
    def forecast(fid): return jsonify(canned.forecast(fid))
    @app.delete("/forecasts/<fid>")
    def delete(fid): return "", 204
    @app.post("/forecasts/<fid>/reconcile")
    def reconcile(fid): return jsonify(canned.forecast(fid))
    @app.post("/forecasts/<fid>/track-record")
    def record(fid): jobs["1"*20] = time.time(); return jsonify(job_of("1"*20)), 202
    @app.get("/universe/<name>/why")
    def why(name): return jsonify(A["why"])
    @app.get("/runs/compare")
    def compare(): return jsonify(A["compare"])
    @app.get("/health")
    def health(): return jsonify(dict(status="ok", version="1", model="ready", queued=0, running=0, uptime=1.0))
    @app.after_request
    def headers(response):
        response.headers["Content-Security-Policy"] = ("default-src 'none'; script-src 'self'; style-src 'self'; style-src-elem 'self'; style-src-attr 'unsafe-inline'; "
            "img-src 'self' data: blob:; font-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
        response.headers["Vary"] = "Accept"
        return response
    return app

if __name__ == "__main__":
    make_app().run(port=8123)
