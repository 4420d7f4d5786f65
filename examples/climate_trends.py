"""North American warming on a fine grid: a climate job whose workers exchange much data.

The job reads real climate model output (surface air temperature, Met Office Unified Model,
scenario A1B, from the PyPI package ``iris-sample-data``), interpolates it to a grid of about
3 km and then does what climate scientists do with such a field on a dask cluster: anomalies,
rechunking from maps to time series, a trend per grid cell, the leading EOF. The file holds 240
maps, each the mean of one year (1860 to 2099).

    python climate_trends.py                   # workers exchange shared-memory handles
    python climate_trends.py --protocol tcp    # the same work, bytes go through sockets
    python climate_trends.py --scale 2         # a field of twice the size

Needs: xshm, dask[array,distributed], xarray, netCDF4 (or h5netcdf and scipy), cftime,
matplotlib, iris-sample-data.
"""

import argparse
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import dask
import dask.array as da
import iris_sample_data
import matplotlib
import numpy as np
import xarray as xr
from dask.distributed import Client, LocalCluster, as_completed, futures_of
from dask.system import CPU_COUNT

matplotlib.use("Agg")  # draws to a file: no display needed
import matplotlib.pyplot as plt

GiB, MiB = 2**30, 2**20
REFINEMENT = 40  # fine cells per cell of the model's grid and direction at --scale 1
TIMES_PER_MAP_CHUNK = 12
TILES = 32  # time-series chunks: bands of latitude

CONFIG = {
    # "tasks" moves every piece from worker to worker in memory; "p2p" goes through files. It is
    # used for both protocols, so that they do the same work.
    "array.rechunk.method": "tasks",
    # One step from maps to series: a rechunk in several steps moves the data several times,
    # which pays only for graphs far larger than this one.
    "array.rechunk.threshold": 1000,
}


# ---------------------------------------------------------------------------- the science


def read_temperature():
    """Return the model's air temperature, shape (time, latitude, longitude), in memory."""
    path = Path(iris_sample_data.path) / "A1B_north_america.nc"
    # The calendar has 360 days a year, which datetime64 cannot represent.
    coder = xr.coders.CFDatetimeCoder(use_cftime=True)
    with xr.open_dataset(path, decode_times=coder) as dataset:
        return dataset["air_temperature"].load().reset_coords(drop=True)


def linear_weights(coarse, fine):
    """Return the matrix, shape (fine, coarse), of linear interpolation along one axis."""
    return np.stack([np.interp(fine, coarse, unit) for unit in np.eye(len(coarse))], axis=1)


def interpolate(coarse, refinement):
    """Interpolate bilinearly to a regular grid, lazily, one chunk per 12 maps.

    Bilinear interpolation is separable and linear: one small matrix for all rows and one for all
    columns. Two matrix products per map are quick, so that preparing the data takes little of the
    job's time.
    """
    rows, columns = coarse.latitude.values, coarse.longitude.values
    fine = {
        "latitude": np.linspace(rows[0], rows[-1], (len(rows) - 1) * refinement + 1),
        "longitude": np.linspace(columns[0], columns[-1], (len(columns) - 1) * refinement + 1),
    }
    by_row = linear_weights(rows, fine["latitude"]).astype("float32")
    by_column = linear_weights(columns, fine["longitude"]).astype("float32")
    return xr.apply_ufunc(
        lambda maps: by_row @ maps @ by_column.T,
        coarse.chunk(time=TIMES_PER_MAP_CHUNK),
        input_core_dims=[["latitude", "longitude"]],
        output_core_dims=[["latitude", "longitude"]],
        exclude_dims={"latitude", "longitude"},  # they change their lengths
        dask="parallelized",
        output_dtypes=["float32"],
        dask_gufunc_kwargs={"output_sizes": {dim: len(c) for dim, c in fine.items()}},
    ).assign_coords(fine)


def remove_climatology(field):
    """Subtract from every map the mean of its calendar month.

    The sample file holds one mean per year, so all its maps fall into one month and the anomaly
    is the departure from the mean of all years. Monthly data need no other code.
    """
    climatology = field.groupby("time.month").mean(skipna=False).chunk(month=-1)

    # Block by block, since the same expression on the whole dask array would first repeat the
    # climatology for every time: a second array as large as the field.
    def subtract(maps, climatology):
        return (maps.groupby("time.month") - climatology).drop_vars("month")

    return xr.map_blocks(subtract, field, [climatology], template=field)


def to_time_series(maps):
    """Rechunk from maps to bands of latitude with all times: everyone sends to everyone.

    Bands and not squares, since rows of a map are contiguous in memory.
    """
    return maps.chunk(time=-1, latitude=-(-maps.sizes["latitude"] // TILES))


def regress(anomalies, predictor):
    """Return the least squares slope of every cell's anomalies, in K per unit of predictor."""
    centred = predictor - predictor.mean()
    # One weighted sum over time; ``polyfit`` would solve the same problem less cheaply.
    return xr.dot((centred / (centred**2).sum()).astype("float32"), anomalies, dim="time")


def covariance_in_time(anomalies):
    """Return the area-weighted covariance of all pairs of maps, shape (time, time).

    It is a sum over tiles of one matrix product each and has the same leading eigenvectors (in
    time) as the far larger matrix cell x cell.
    """
    area = np.cos(np.deg2rad(anomalies.latitude))
    weighted = (anomalies * np.sqrt(area).astype("float32")).data
    cells = float(area.sum()) * anomalies.sizes["longitude"]
    return da.tensordot(weighted, weighted, axes=([1, 2], [1, 2])) / cells


def leading_component(covariance, time_coord):
    """Return the standardised time series of the first EOF and its share of the variance."""
    values, vectors = np.linalg.eigh(covariance.astype("float64"))  # ascending order
    series = vectors[:, -1] * np.sqrt(len(vectors))
    series *= np.sign(series[-1] - series[0])  # the sign is free: let it rise
    return xr.DataArray(series, {"time": time_coord}, ["time"]), values[-1] / values.sum()


# ---------------------------------------------------- progress and accounting of the bytes


class Journal:
    """Shows each stage while it runs and notes its seconds and the bytes it moved."""

    def __init__(self, client):
        self.client = client
        self.rows = []

    def bytes_moved(self):
        """Return the bytes of chunks that workers sent, and all bytes through loopback.

        Workers exchange some chunks in every stage, since dask moves them to balance the load.
        The loopback interface counts the traffic of all programs of this machine.
        """
        sent = self.client.run(lambda dask_worker: dask_worker.transfer_outgoing_bytes_total)
        loopback = Path("/sys/class/net/lo/statistics/rx_bytes").read_text()
        return np.array([sum(sent.values()), int(loopback)])

    @contextmanager
    def stage(self, name):
        """Time the block; yields a function that shows the progress of a dask collection."""
        print(f"{name:<36}", end="", flush=True)
        before, start = self.bytes_moved(), time.perf_counter()
        yield self.show_progress
        seconds = time.perf_counter() - start
        moved = self.bytes_moved() - before
        print(f"  {seconds:.1f} s", flush=True)
        self.rows.append((name, seconds, *moved))

    def show_progress(self, collection):
        """Wait for a persisted collection; prints only appended text, so it can be piped."""
        futures = futures_of(collection)
        shown = 0
        for done, future in enumerate(as_completed(futures), 1):
            if future.status != "finished":
                future.result()  # raises what went wrong on the worker
            percent = 25 * (4 * done // len(futures))
            if percent > shown:
                print(f" {percent}%", end="", flush=True)
                shown = percent
        return collection

    def table(self):
        """Return the stages as lines of text."""
        total = ("total", *np.sum([row[1:] for row in self.rows], axis=0))
        yield f"{'stage':<36}{'seconds':>9}{'sent by workers':>18}{'through loopback':>19}"
        for name, seconds, sent, loopback in (*self.rows, total):
            yield (f"{name:<36}{seconds:>9.1f}{sent / MiB:>14,.0f} MiB{loopback / MiB:>15,.0f} MiB")


def exchange_report(client, protocol):
    """Return lines that say how the workers' data travelled."""
    yield "(through loopback: the traffic of all programs of this machine)"
    if protocol != "shm":
        yield "What workers sent was copied through sockets as ordinary bytes."
        return
    import xshm

    workers = client.run(xshm.stats).values()
    keys = "handles_sent", "bytes_sent_by_handle", "bytes_copied_in", "bytes_sent_inline"
    handles, *sizes = (sum(worker[key] for worker in workers) for key in keys)
    by_handle, copied, inline = (size / MiB for size in sizes)
    yield f"{by_handle:>9,.0f} MiB sent as {handles:,} shared-memory handles;"
    yield f"{by_handle - copied:>9,.0f} MiB of it lay in shared memory already (no copy was made),"
    yield f"{copied:>9,.0f} MiB of it had to be copied there first"
    yield f"{inline:>9,.0f} MiB sent as ordinary bytes through sockets"


# ------------------------------------------------------------------------------- the job


def draw(trend, pattern, series, years, share, path):
    """Save the trend map, the leading EOF and its time series."""
    figure = plt.figure(figsize=(13, 6.6), layout="constrained")
    figure.suptitle("Surface air temperature over North America, scenario A1B", fontsize=16)
    grid = figure.add_gridspec(2, 2, width_ratios=[1.8, 1], height_ratios=[1.5, 1])
    west, east = (trend.longitude.values[[0, -1]] + 180) % 360 - 180
    extent = (west, east, *trend.latitude.values[[0, -1]])
    for cell, field, title, label in (
        (grid[:, 0], trend, f"Linear trend {years}", "K per decade"),
        (grid[0, 1], pattern, f"EOF 1: {share:.0%} of the variance", "K per standard deviation"),
    ):
        axes = figure.add_subplot(cell, title=title)
        low, high = np.percentile(field, [0.5, 99.5])  # a few extreme cells would fade the rest
        image = axes.imshow(field, "YlOrRd", extent=extent, origin="lower", vmin=low, vmax=high)
        # A degree of longitude is shorter than one of latitude.
        axes.set_aspect(1 / np.cos(np.deg2rad(float(field.latitude.mean()))))
        axes.xaxis.set_major_formatter(lambda x, _: f"{-x:.0f}°W")
        axes.yaxis.set_major_formatter("{x:.0f}°N")
        figure.colorbar(image, label=label, extend="both", location="bottom", aspect=40)
    axes = figure.add_subplot(grid[1, 1], title="Time series of EOF 1")
    axes.plot(series.time.dt.decimal_year, series, color="firebrick", linewidth=1)
    axes.axhline(0, color="grey", linewidth=0.6)
    axes.set(xlabel="year", ylabel="standard deviations")
    axes.margins(x=0)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def analyse(client, coarse, refinement, output):
    """Do the whole job on the cluster, show it, and return the journal of its stages."""
    journal = Journal(client)
    # Each stage is persisted, so that its time and its bytes are seen on their own, and what is
    # no longer needed is dropped at once: at most two copies of the field are alive.
    with journal.stage("interpolate to the fine grid") as show:
        field = show(interpolate(coarse, refinement).persist())
    with journal.stage("anomalies (maps)") as show:
        anomalies = show(remove_climatology(field).persist())
        del field
    with journal.stage("rechunk from maps to time series") as show:
        anomalies = show(to_time_series(anomalies).persist())
    with journal.stage("trend of every cell") as show:
        decades = anomalies.time.dt.decimal_year / 10
        trend = show(regress(anomalies, decades).persist()).compute()
    with journal.stage("leading EOF: covariance") as show:
        covariance = show(covariance_in_time(anomalies).persist()).compute()
        series, share = leading_component(covariance, anomalies.time)
    with journal.stage("leading EOF: pattern") as show:
        pattern = show(regress(anomalies, series).persist()).compute()
    with journal.stage("picture"):
        years = "{}-{}".format(*coarse.time.dt.year.values[[0, -1]])
        draw(trend, pattern, series, years, share, output)

    mean = float(trend.weighted(np.cos(np.deg2rad(trend.latitude))).mean())
    print(f"\nTrend {years}: area mean {mean:+.3f} K per decade", end="")
    print(f" (cells from {float(trend.min()):+.3f} to {float(trend.max()):+.3f})")
    print(f"EOF 1 explains {share:.1%} of the variance; picture saved to {output}\n")
    return journal


def parse_arguments():
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--protocol", choices=["shm", "tcp"], default="shm")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the field, 1 is 2.5 GiB")
    parser.add_argument("--workers", type=int, default=max(2, min(4, CPU_COUNT)))
    parser.add_argument("--output", type=Path, default=Path("trend.png"))
    options = parser.parse_args()
    if not options.output.resolve().parent.is_dir():  # not after all the work
        parser.error(f"no such directory: {options.output.resolve().parent}")
    return options


def main():
    """Run the job on a local cluster and report."""
    options = parse_arguments()
    coarse = read_temperature()
    refinement = max(1, round(REFINEMENT * options.scale**0.5))
    steps, rows, columns = coarse.shape
    rows, columns = (rows - 1) * refinement + 1, (columns - 1) * refinement + 1
    size = steps * rows * columns * coarse.dtype.itemsize
    print(f"{steps} maps (means of a year each) of {coarse.shape[1]} x {coarse.shape[2]} cells")
    print(f"fine grid: {rows} x {columns} cells, {size / GiB:.2f} GiB in {coarse.dtype}")
    print(f"cluster:   {options.workers} workers, protocol {options.protocol}\n", flush=True)

    with (
        tempfile.TemporaryDirectory() as scratch,  # all of dask's directories go with it
        dask.config.set({**CONFIG, "temporary-directory": scratch}),
        LocalCluster(
            protocol=options.protocol,
            n_workers=options.workers,
            threads_per_worker=1,
            dashboard_address=None,
            memory_limit=0,  # neither spill to disk nor pause: about 6 GiB are needed at scale 1
        ) as cluster,
        Client(cluster) as client,
    ):
        journal = analyse(client, coarse, refinement, options.output)
        print(*journal.table(), "", *exchange_report(client, options.protocol), sep="\n")


if __name__ == "__main__":
    main()
