"""A pool of processes that takes Datasets and returns Datasets, with and without xshm.

Two climate scenarios for North America (A1B, of much fossil fuel, and E1, of little), real output
of a climate model, are cut into periods of 30 years. Each process of a ``multiprocessing.Pool``
takes a period, finds the linear trend of every cell, and returns it with the departure of every
year from it: as large a Dataset as it was given. Do years vary more as it gets warmer?

The same work is done in this process, by the pool as it is, which pickles every array through a
pipe, and by the pool after ``import xshm.multiprocessing``, which passes handles.

    python pool_of_datasets.py
    python pool_of_datasets.py --scale 0.4 --processes 4

Needs what climate_trends.py needs.
"""

import argparse
import multiprocessing
import os
import time
from pathlib import Path

# Before NumPy is imported: the processes share the cores, and the threads of each one's matrix
# products would be in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import iris_sample_data
import numpy as np
import xarray as xr
from climate_trends import REFINEMENT, interpolate

MiB = 2**20
SCENARIOS = "A1B", "E1"
YEARS_PER_PERIOD = 30


# ---------------------------------------------------------------------------- the science


def read_periods(refinement):
    """Return a Dataset for every scenario and period, on a fine grid."""
    coder = xr.coders.CFDatetimeCoder(use_cftime=True)  # the calendar has 360 days a year
    periods = []
    for scenario in SCENARIOS:
        path = Path(iris_sample_data.path) / f"{scenario}_north_america.nc"
        with xr.open_dataset(path, decode_times=coder) as dataset:
            coarse = dataset["air_temperature"].load().reset_coords(drop=True)
        # Computed in this thread, not in dask's: its arrays are those born in shared memory.
        fine = interpolate(coarse, refinement).compute(scheduler="synchronous")
        field = fine.assign_coords(time=fine.time.dt.year).rename(time="year")
        dataset = field.to_dataset(name="temperature").assign_attrs(scenario=scenario)
        periods += [
            dataset.isel(year=slice(start, start + YEARS_PER_PERIOD))
            for start in range(0, dataset.sizes["year"], YEARS_PER_PERIOD)
        ]
    return periods


def detrend(period):
    """Return the trend of every cell, in K per decade, and each year's departure from it, in K."""
    field = period["temperature"]
    decades = ((period.year - period.year.mean()) / 10).astype(field.dtype)
    trend = xr.dot(decades, field, dim="year") / (decades**2).sum()
    departure = field - field.mean("year") - trend * decades
    return period.assign(trend=trend, departure=departure).drop_vars("temperature")


def variability(result):
    """Return how much years vary: the area's mean of their standard deviation, in K."""
    deviation = result["departure"].std("year")
    return float(deviation.weighted(np.cos(np.deg2rad(result.latitude))).mean())


# -------------------------------------------------------------------- three ways to do the work


def in_this_process(periods, processes):
    """Do the work twice without a pool; return the results and the seconds of each time."""
    return timed(lambda: [detrend(period) for period in periods])


def in_pool(periods, processes):
    """Do the work twice in a pool: nothing here knows of shared memory."""
    with multiprocessing.Pool(processes) as pool:
        pool.map(detrend, [periods[0].isel(latitude=[0])] * processes)  # all of them have started
        return timed(lambda: pool.map(detrend, periods, chunksize=1))


def timed(work):
    """Return the results of the work, the seconds of a first time, and those of a second one."""
    start = time.perf_counter()
    work()
    middle = time.perf_counter()
    results = work()
    return results, middle - start, time.perf_counter() - middle


# ------------------------------------------------------------------------------- the report


def main():
    """Do the work in three ways, compare the results and print what each took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=0.1, help="1 is 5 GiB")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    refinement = max(1, round(REFINEMENT * options.scale**0.5))

    periods = read_periods(refinement)
    size = sum(period.nbytes for period in periods) / MiB
    print(f"{len(periods)} Datasets, {size:,.0f} MiB in all; as much comes back\n", flush=True)
    print(f"{'seconds':<32}{'first':>8}{'again':>8}")

    expected, *seconds = in_this_process(periods, options.processes)
    report("in this process", seconds)
    results, *seconds = in_pool(periods, options.processes)
    report(f"pool of {options.processes}", seconds)
    compare(results, expected)
    del periods, results

    import xshm.multiprocessing  # at the top of one's program: all that a user has to do

    periods = read_periods(refinement)
    results, *seconds = in_pool(periods, options.processes)
    report("... import xshm.multiprocessing", seconds)
    compare(results, expected)
    xshm.multiprocessing.disable()

    keys = "bytes_sent_by_handle", "bytes_copied_in", "bytes_received_by_handle"
    sent, copied, received = (xshm.stats()[key] / MiB for key in keys)
    print(f"\nBoth times, as handles: {sent:,.0f} MiB sent ({copied:,.0f} MiB copied before),")
    print(f"{received:,.0f} MiB received.")

    print("\nHow much years vary around the trend of their 30 years, in K:")
    for scenario in SCENARIOS:
        own = [result for result in results if result.attrs["scenario"] == scenario]
        first, last = (
            f"{variability(result):.2f} ({result.year.values[0]}-{result.year.values[-1]})"
            for result in (own[0], own[-1])
        )
        print(f"{scenario:<4} {first} to {last}")


def report(way, seconds):
    """Print a line of the table."""
    print(f"{way:<32}" + "".join(f"{x:>8.2f}" for x in seconds), flush=True)


def compare(results, expected):
    """Fail unless both are the same, but for the order in which numbers were added."""
    for result, other in zip(results, expected, strict=True):
        assert result.attrs == other.attrs
        xr.testing.assert_allclose(result, other, atol=1e-3)


if __name__ == "__main__":
    main()
