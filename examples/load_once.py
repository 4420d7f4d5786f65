"""One process loads a field, and everybody else of this computer uses it from there.

The field is that of climate_trends.py: yearly means of air temperature over North America, real
output of a climate model, on a fine grid. Three unrelated programs want all of it: a plain
script, a pool of processes, and a dask cluster. Each asks the same question for some cities: how
much does every place warm while the city warms by 1 K? First each reads a netCDF file by itself,
as is usual; then each opens what ``xshm.publish`` has put into shared memory.

    python load_once.py
    python load_once.py --scale 0.1    # a smaller field

Needs what climate_trends.py needs.
"""

import argparse
import json
import logging
import multiprocessing
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import xarray as xr

MiB = 2**20
NAME = "load-once"
CITIES = {
    "Vancouver": (49.3, 236.9),
    "Houston": (29.8, 264.6),
    "New York": (40.7, 286.0),
    "Mexico City": (19.4, 260.9),
}
MAPS_PER_CHUNK = 12


# ---------------------------------------------------------------------------- the question


def response(field, city):
    """Return the slope of every cell's temperature over that of a city, in K per K."""
    latitude, longitude = CITIES[city]
    series = field.sel(latitude=latitude, longitude=longitude, method="nearest")
    centred = series - series.mean()
    return xr.dot(centred / (centred**2).sum(), field, dim="time")


# ------------------------------------------------------------- three programs that want to know


def open_field(source, **options):
    """Open the netCDF file, or the published field: nothing else differs between the two."""
    engine = "netcdf4" if source.endswith(".nc") else "xshm"
    return xr.open_dataset(source, engine=engine, **options)["temperature"]


def own_memory():
    """Return the bytes of memory that belong to this process alone."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in x)
    return int(line.split()[1]) * 1024


def read_and_ask(source, city):
    """Open the field, load it and answer for one city; return what that took."""
    before, start = own_memory(), time.perf_counter()
    field = open_field(source).load()
    answer = response(field, city)
    seconds, memory = time.perf_counter() - start, own_memory() - before
    return {"mean": float(answer.mean()), "seconds": seconds, "memory": memory}


def in_script(source):
    """Ask for one city in a Python script of its own."""
    command = [sys.executable, __file__, "--script", source]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def in_pool(source):
    """Ask for one city in each process of a pool."""
    with multiprocessing.get_context("spawn").Pool(len(CITIES)) as pool:
        pool.map(time.sleep, [0.5] * len(CITIES), chunksize=1)  # all of them have started
        start = time.perf_counter()
        answers = pool.starmap(read_and_ask, [(source, city) for city in CITIES], chunksize=1)
        seconds = time.perf_counter() - start
    return {
        "mean": float(np.mean([answer["mean"] for answer in answers])),
        "seconds": seconds,
        "memory": sum(answer["memory"] for answer in answers),
    }


def in_cluster(source):
    """Ask for all cities on a dask cluster, which keeps the field."""
    from dask.distributed import Client, LocalCluster, wait

    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address=":0",
            silence_logs=logging.CRITICAL,  # of the last heartbeat, which finds nobody
        ) as cluster,
        Client(cluster) as client,
    ):
        before = sum(client.run(own_memory).values())
        start = time.perf_counter()
        field = open_field(source, chunks={"time": MAPS_PER_CHUNK}).persist()
        wait(field)
        answers = client.gather(client.compute([response(field, city) for city in CITIES]))
        seconds = time.perf_counter() - start
        memory = sum(client.run(own_memory).values()) - before
    mean = float(np.mean([answer.mean() for answer in answers]))
    return {"mean": mean, "seconds": seconds, "memory": memory}


# ------------------------------------------------------------------------------- the report


def draw(answers, path):
    """Save one map for each city."""
    import matplotlib

    matplotlib.use("Agg")  # draws to a file: no display needed
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(CITIES), figsize=(15, 4.5), layout="constrained")
    figure.suptitle("Warming everywhere while a city warms by 1 K, scenario A1B")
    for ax, answer, (city, (latitude, longitude)) in zip(
        axes, answers, CITIES.items(), strict=True
    ):
        west, east = answer.longitude.values[[0, -1]] - 360
        extent = (west, east, *answer.latitude.values[[0, -1]])
        image = ax.imshow(answer, "YlOrRd", extent=extent, origin="lower", vmin=0, vmax=2)
        ax.plot(longitude - 360, latitude, "k+")
        ax.set(title=city, aspect=1.4, xticks=[], yticks=[])
    figure.colorbar(image, ax=axes, label="K per K", extend="max", location="bottom", aspect=60)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def report(rows):
    """Print who needed how much, reading the file and opening what is shared."""
    print(f"\n{'':<22}{'seconds':>18}{'own memory, MiB':>24}")
    print(f"{'':<22}{'file':>9}{'shared':>9}{'file':>12}{'shared':>12}")
    for who, file, shared in rows:
        cells = [f"{x['seconds']:>9.2f}" for x in (file, shared)]
        cells += [f"{x['memory'] / MiB:>12,.0f}" for x in (file, shared)]
        print(f"{who:<22}" + "".join(cells))
    saved = {key: sum(f[key] - s[key] for _, f, s in rows) for key in ("seconds", "memory")}
    print(f"\nsaved: {saved['seconds']:.1f} s and {saved['memory'] / MiB:,.0f} MiB")


def publish_and_ask(scale, output):
    """Load the field once, publish it, and let the three programs use it."""
    from climate_trends import REFINEMENT, interpolate, read_temperature

    import xshm

    coarse = read_temperature()
    field = interpolate(coarse, max(1, round(REFINEMENT * scale**0.5)))
    dataset = field.assign_coords(time=coarse.time.dt.year).to_dataset(name="temperature")
    print(f"{coarse.sizes['time']} yearly means, {dataset.nbytes / MiB:,.0f} MiB", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "field.nc")
        start = time.perf_counter()
        with xshm.publish(dataset, NAME) as shared:
            print(f"published in {time.perf_counter() - start:.1f} s (computed, chunk by chunk)")
            xr.open_dataset(shared).to_netcdf(path)
            rows = []
            for ask in (in_script, in_pool, in_cluster):
                who = ask.__name__.removeprefix("in_")
                print(f"asking in a {who} ...", flush=True)
                file, opened = ask(path), ask(shared.name)
                np.testing.assert_allclose(file["mean"], opened["mean"], rtol=1e-4)
                rows.append((who, file, opened))
            answers = [response(open_field(shared.name), city) for city in CITIES]
    report(rows)
    draw(answers, output)
    print(f"mean over all cities and places: {rows[-1][2]['mean']:.3f} K per K")
    print(f"maps saved to {output}")


def main():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=0.25, help="1 is 2.5 GiB")
    parser.add_argument("--output", type=Path, default=Path("response.png"))
    parser.add_argument("--script", metavar="SOURCE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.script:
        print(json.dumps(read_and_ask(options.script, next(iter(CITIES)))))
    else:
        publish_and_ask(options.scale, options.output)


if __name__ == "__main__":
    main()
