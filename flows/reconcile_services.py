"""Repair what differs from the records; the deployment `reconcile-services/default` of `prefect.yaml`."""

from prefect_dstack.flows.reconcile import reconcile_services

if __name__ == "__main__":
    reconcile_services.serve(name="default", interval=300)
