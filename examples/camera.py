"""A camera, and two who watch it: one is quick and misses hardly a frame, the other one draws.

The camera plays the temperature of the sea along the equator from 2006 to 2010, as satellites saw
it (monthly means of the OSTIA analysis, from the PyPI package ``iris-sample-data``, and what lies
between them by interpolation). Every frame is a DataArray with the time at which it was taken. On
the way the camera zooms in on the Pacific, so that shape and coordinates of the frames change
too. It writes them to an ``xshm.Channel``, and waits for nobody. Two other processes read them:

- one keeps the temperature of the region Niño 3.4, by which El Niño and La Niña are known;
- one draws a picture anew for each frame that it gets, and misses those that come meanwhile.

    python camera.py
    python camera.py --frames 1000 --rate 100

Needs: xshm, xarray, netCDF4, matplotlib, iris-sample-data.
"""

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import iris_sample_data
import matplotlib
import numpy as np
import xarray as xr

import xshm

matplotlib.use("Agg")  # draws to a file: no display needed
import matplotlib.pyplot as plt

NAME = "camera"
MiB = 2**20
YEARS = 2006.25, 2010.75  # of the picture: the camera plays April 2006 to September 2010
COLOURS = {
    "cmap": "RdYlBu_r",
    "vmin": 20,
    "vmax": 31,
    "interpolation": "nearest",
    "origin": "lower",
    "aspect": "auto",
}


# ---------------------------------------------------------------------------- the camera


def read_months():
    """Return the temperature of the sea's surface in degrees Celsius, a map for each month."""
    with xr.open_dataset(Path(iris_sample_data.path) / "ostia_monthly.nc") as dataset:
        field = dataset["surface_temperature"].load().reset_coords(drop=True)
    return (field - 273.15).rename("temperature").assign_attrs(units="°C")


def take_frame(months, progress, pixels_per_degree):
    """Return what the camera sees when this share of the months has gone by."""
    position = progress * (months.sizes["time"] - 1)
    month = min(int(position), months.sizes["time"] - 2)
    before, after = months.isel(time=month), months.isel(time=month + 1)
    taken = before.time + (position - month) * (after.time - before.time)
    frame = before + (position - month) * (after.drop_vars("time") - before.drop_vars("time"))
    # From the whole equator at first to the Pacific in the end, ever more closely.
    west, east = (np.interp(progress, [0.4, 0.6], zoom) for zoom in ([0, 120], [359, 290]))
    closeness = pixels_per_degree * 359 / (east - west)
    view = {
        "latitude": np.linspace(-5, 4.5, round(9.5 * closeness)),
        "longitude": np.linspace(west, east, round((east - west) * closeness)),
    }
    return frame.sel(view, method="nearest").assign_coords({**view, "time": taken})


def play(camera, frames, rate, pixels_per_degree):
    """Write that many frames to the channel, so many a second; return a report."""
    months = read_months()
    start = due = time.perf_counter()
    for progress in np.linspace(0, 1, frames).tolist():
        frame = take_frame(months, progress, pixels_per_degree)
        time.sleep(max(0, due - time.perf_counter()))
        camera.write(frame)
        due = max(due + 1 / rate, time.perf_counter())  # who is late does not hurry afterwards
    rate = frames / (time.perf_counter() - start)
    return f"wrote {frames} frames of {frame.nbytes / MiB:.1f} MiB, {rate:.0f} a second"


# ---------------------------------------------------------------------------- who watches it


def get_ready(_):
    """Have xarray import what it needs for a mean, which takes longer than many frames."""
    xr.DataArray([0.0]).mean()
    time.sleep(0.2)  # the other process takes the other call


def watch(frames):
    """Give the snapshots of the channel up to the camera's last frame."""
    with xshm.Channel(NAME) as channel:
        for snapshot in channel:  # it would end with the camera, too
            yield snapshot
            if snapshot.version == frames:
                return


def keep_statistic(frames):
    """Follow the temperature of the region Niño 3.4; return it as a series, and a report."""
    series, ages = [], []
    for snapshot in watch(frames):
        series.append(snapshot.value.sel(longitude=slice(190, 240)).mean())
        ages.append(snapshot.age)
    return xr.concat(series, "time"), report(frames, ages)


def draw(frames, path):
    """Draw what the camera saw, anew for each frame; return a report."""
    figure, latest, past = prepare_figure()
    drawn_to, ages = YEARS[0], []
    for snapshot in watch(frames):
        ages.append(snapshot.age)
        frame = snapshot.value
        year = frame.time.dt.decimal_year.item()
        west, east = frame.longitude.values[[0, -1]]
        south, north = frame.latitude.values[[0, -1]]
        if latest.images:
            latest.images[0].remove()
        latest.imshow(frame, extent=(west, east, south, north), **COLOURS)
        latest.set_title(f"Latest frame: {frame.time.dt.strftime('%d %B %Y').item()}")
        row = frame.mean("latitude").values[np.newaxis]
        past.imshow(row, extent=(west, east, drawn_to, year), **COLOURS)
        past.plot(1.01, year, "k_", transform=past.get_yaxis_transform(), clip_on=False)
        drawn_to = year
        figure.savefig(path, dpi=100)
    plt.close(figure)
    return report(frames, ages)


def prepare_figure():
    """Return a figure with all that stays, its axes for the latest frame, and those for all."""
    figure, (latest, past) = plt.subplots(
        2, figsize=(10, 7), height_ratios=[1, 6], sharex=True, layout="constrained"
    )
    figure.suptitle("Temperature of the sea along the equator", fontsize=15)
    latest.set_title("Latest frame")
    latest.set_yticks([-5, 0, 5], ["5°S", "0°", "5°N"])
    latest.set(ylim=(-5, 5), facecolor="lightgrey")
    past.set_title(
        "Mean of all latitudes (grey: land, or not in view; dashes at the right: frames seen)"
    )
    past.set_xticks(range(0, 361, 60), ["0°", "60°E", "120°E", "180°", "120°W", "60°W", "0°"])
    past.set(xlim=(0, 360), ylim=YEARS, facecolor="lightgrey")
    past.set_yticks(range(2007, 2011))
    past.set(xlabel="longitude", ylabel="year")
    limits = plt.Normalize(COLOURS["vmin"], COLOURS["vmax"])
    colours = plt.cm.ScalarMappable(limits, COLOURS["cmap"])
    figure.colorbar(colours, ax=(latest, past), label="°C", extend="both")
    figure.canvas.draw()  # finds the layout,
    figure.set_layout_engine("none")  # which stays
    return figure, latest, past


def report(frames, ages):
    """Return a line that says how many frames were seen, how many missed, and how old they were."""
    age = 1000 * np.mean(ages)
    return f"saw {len(ages)} frames, missed {frames - len(ages)}, mean age {age:.1f} ms"


# ------------------------------------------------------------------------------- all of them


def main():
    """Start the two that watch, play, and tell what they saw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--rate", type=float, default=50, help="frames a second")
    parser.add_argument("--pixels-per-degree", type=float, default=8, help="before zooming in")
    parser.add_argument("--output", type=Path, default=Path("equator.png"))
    options = parser.parse_args()
    frames = options.frames
    xshm.Channel(NAME).unlink()  # versions count from 1, also after a run that was killed
    # When the block ends, for whatever reason, the channel is removed, and the readers end.
    with ProcessPoolExecutor(2) as processes, xshm.Channel(NAME) as camera:
        list(processes.map(get_ready, range(2)))
        statistic = processes.submit(keep_statistic, frames)
        picture = processes.submit(draw, frames, options.output)
        written = play(camera, frames, options.rate, options.pixels_per_degree)
        print(f"camera:    {written}")
        series, seen = statistic.result()
        print(f"statistic: {seen}")
        print(f"picture:   {picture.result()}")
    for what, time_of in ("warmest", series.idxmax("time")), ("coldest", series.idxmin("time")):
        month, value = time_of.dt.strftime("%B %Y").item(), series.sel(time=time_of).item()
        print(f"Niño 3.4 was {what} in {month}: {value:.1f} °C")
    print(f"picture saved to {options.output}")


if __name__ == "__main__":
    main()
