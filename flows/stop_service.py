"""Stop a service; used by `stop-service/default` in `prefect.yaml`."""

from prefect_dstack import stop_service

if __name__ == "__main__":
    stop_service.serve(name="default")
